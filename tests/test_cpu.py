"""What makes a network fast on a CPU."""

import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from scripts.cpu import sum_by_two_threads
from scripts.inferers import MirroredWindowInferer
from scripts.precision import logits

FAULTS = """
import resource, sys
sys.path.insert(0, "templates")
import torch
from scripts.cpu import keep_freed_memory

def faults():
    "Pages that the system had to hand out for twenty tensors of 64 MiB, one after the other."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_freed_memory()
print(usual, faults())
"""


@pytest.fixture
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    """Let torch use this number of threads during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize(
    ("num", "amp", "gradients", "calls"),
    [
        pytest.param(1, False, False, 1, id="one image"),
        pytest.param(2, False, False, 0, id="a batch, which torch leaves to oneDNN"),
        pytest.param(1, True, False, 0, id="mixed precision, as well"),
        pytest.param(1, False, True, 0, id="training"),
    ],
)
def test_one_dnn_convolves_single_images(
    num: int, amp: bool, gradients: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, onednn = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *given: called.append(given) or onednn(*given))
    conv = torch.nn.Conv3d(2, 3, (3, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0), dilation=(1, 1, 2))
    images = torch.randn(num, 2, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(gradients):
        found, expected = logits(conv, images, amp), conv(images)
    assert len(called) == calls
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if amp else 1e-5)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_and_not_asked_for_anew(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=root, capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 4


@pytest.mark.parametrize(
    ("cores", "num", "halves"),
    [(4, 8, [(2, 4), (2, 4)]), (2, 2, [(1, 1), (1, 1)]), (1, 8, [(1, 8)]), (3, 8, [(3, 8)]), (4, 5, [(4, 5)])],
    ids=["four cores", "two cores", "one core", "odd cores", "odd items"],
    indirect=["cores"],
)
def test_each_half_has_half_of_the_cores_where_halves_are_equal(
    cores: int, num: int, halves: list[tuple[int, int]]
) -> None:
    seen = []
    together = threading.Barrier(len(halves))

    def function(items: Sequence[int]) -> torch.Tensor:
        together.wait(timeout=60)
        seen.append((torch.get_num_threads(), len(items)))
        return torch.tensor(sum(items))

    assert sum_by_two_threads(function, range(num)) == sum(range(num))
    assert seen == halves
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_no_gradients_there_where_none_are_wanted_here(cores: int) -> None:
    weight = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert not sum_by_two_threads(lambda items: weight * sum(items), [1, 2]).requires_grad
    assert sum_by_two_threads(lambda items: weight * sum(items), [1, 2]).requires_grad


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_an_error_in_one_half_is_an_error(cores: int) -> None:
    with pytest.raises(ZeroDivisionError):
        sum_by_two_threads(lambda items: torch.tensor(1 / items[0]), [1, 0])
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_the_prediction_by_two_threads_is_that_by_one(cores: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).eval()
    image = torch.randn(1, 1, 10, 12, 9)
    inferer = MirroredWindowInferer((8, 8, 8))
    with torch.no_grad():
        by_two = inferer(image, network)
        torch.set_num_threads(1)
        by_one = inferer(image, network)
    assert by_two.shape == (1, 3, 10, 12, 9)
    torch.testing.assert_close(by_two, by_one)


@pytest.mark.parametrize("cores", [2], indirect=True)
@pytest.mark.parametrize(("edge", "threads"), [(64, 1), (72, 2)])
def test_only_small_windows_are_seen_twice_at_once(cores: int, edge: int, threads: int) -> None:
    """In large ones it gains nothing and needs more memory."""
    seen = set()

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return window

    MirroredWindowInferer((edge,) * 3)(torch.randn(1, 1, edge, edge, edge), network)
    assert seen == {threads}
