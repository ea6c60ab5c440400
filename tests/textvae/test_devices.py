from __future__ import annotations

import pytest
import torch

from textvae.devices import DeviceError, choose


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [
        (0, None, "cpu"),
        (0, "cpu", "cpu"),
        (2, None, "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_the_named_device_or_the_first_gpu_is_chosen(name: str | None, device: str) -> None:
    assert choose(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "name", "message"),
    [
        *(
            (2, name, "must be cpu, cuda or cuda:1")
            for name in ("foo", "", "meta", "cuda:-1", "cuda:" + "9" * 30)
        ),
        (0, "cuda", "it can use none"),
        (1, "cuda:1", "it can use cuda:0"),
        (2, "cuda:2", "it can use cuda:0 to cuda:1"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_device_that_is_not_there_says_what_would_be_right(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        choose(name)
