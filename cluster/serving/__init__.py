"""The served models: an HTTP application on Ray Serve, and the verbs that tell it which versions to serve.

`cluster.serving.app` is the application itself (it imports ray and torch); everything here is plain HTTP.
"""

from __future__ import annotations

from cluster.serving.control import APPLICATION, ServingError, apply, current, exists, wait

__all__ = ["APPLICATION", "ServingError", "apply", "current", "exists", "wait"]
