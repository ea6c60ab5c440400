"""Pictures of a training and of a latent space, and the numbers that they show.

`see` reads reviews with a model; the functions that draw take what it saw and return a matplotlib Figure,
which `save` writes as PNG. Drawn with matplotlib's objects alone, without pyplot and its global state: any
thread may draw.
"""

from textvae.plots.distributions import histograms, kl_per_dimension
from textvae.plots.latent import discriminant, neighbourhoods, principal_components
from textvae.plots.seen import Seen, see
from textvae.plots.separation import Separation, separation
from textvae.plots.style import save
from textvae.plots.training import curves

__all__ = [
    "Seen",
    "Separation",
    "curves",
    "discriminant",
    "histograms",
    "kl_per_dimension",
    "neighbourhoods",
    "principal_components",
    "save",
    "see",
    "separation",
]
