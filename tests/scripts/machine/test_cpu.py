"""What makes a network fast on a CPU."""

import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from scripts import cpu
from scripts.cpu import SumOfHalves
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
        pytest.param(1, False, True, 0, id="training, which needs gradients"),
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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize(
    ("num", "size", "groups"),
    [
        pytest.param(1, 8, 1, id="one image"),
        pytest.param(2, 8, 1, id="a batch, which torch leaves to oneDNN"),
        pytest.param(1, 40, 1, id="a large image, as well"),
        pytest.param(1, 8, 2, id="groups, as well"),
    ],
)
def test_one_dnn_convolves_single_images_of_a_training(num: int, size: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = torch.nn.Conv3d(16, 32, 3, stride=(1, 2, 1), padding=1, groups=groups)
    image = torch.randn(num, 16, size, size, 8, generator=generator, requires_grad=True)
    expected = conv(image)
    downstream = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad(expected, (image, *conv.parameters()), downstream)
    with torch.profiler.profile() as profile:
        found = logits(conv, image, amp=False)
    gradients = torch.autograd.grad(found, (image, *conv.parameters()), downstream)
    kinds = [e.key for e in profile.key_averages() if re.fullmatch("aten::(mkldnn|slow|thnn).*", e.key)]
    assert kinds == ["aten::mkldnn_convolution"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_and_not_asked_for_anew(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=root, capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 4


class Clock:
    """Seconds that the test decides: each call of `step` adds some."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("cores", "num", "at_once", "halves"),
    [
        (4, 8, True, [(2, 4), (2, 4)]),
        (2, 2, True, [(1, 1), (1, 1)]),
        (2, 8, False, [(2, 4), (2, 4)]),
        (1, 8, True, [(1, 4), (1, 4)]),
        (3, 8, True, [(3, 4), (3, 4)]),
        (4, 5, True, [(4, 3), (4, 2)]),
        (4, 1, True, [(4, 1)]),
    ],
    ids=["four cores", "two cores", "too large", "one core", "odd cores", "odd items", "one item"],
    indirect=["cores"],
)
def test_a_half_has_half_of_the_cores_where_both_go_at_once(
    cores: int, num: int, at_once: bool, halves: list[tuple[int, int]]
) -> None:
    seen = []
    together = threading.Barrier(2 if halves[0][0] < cores else 1)

    def function(items: Sequence[int]) -> torch.Tensor:
        together.wait(timeout=60)
        seen.append((torch.get_num_threads(), len(items)))
        return torch.tensor(sum(items))

    assert SumOfHalves()(function, range(num), "kind", at_once=at_once) == sum(range(num))
    assert seen == halves
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [2], indirect=True)
@pytest.mark.parametrize(("alone", "together", "faster"), [(1.0, 1.5, True), (1.0, 2.5, False), (1.0, 2.0, True)])
def test_the_way_that_was_faster_stays(cores: int, alone: float, together: float, faster: bool) -> None:
    """`alone` is what a half takes with all cores, `together` what both take at once."""
    clock, ways = Clock(), []

    def function(items: Sequence[int]) -> torch.Tensor:
        at_once = torch.get_num_threads() == 1
        ways.append(at_once)
        clock.now += together / 2 if at_once else alone
        return torch.tensor(sum(items))

    def way(kind: str) -> bool:
        assert total(function, range(8), kind, at_once=True) == sum(range(8))
        both = {ways.pop(), ways.pop()}
        assert len(both) == 1
        return both.pop()

    total = SumOfHalves(clock)
    turns = [way("small") for _ in range(2 * SumOfHalves.TURNS)]
    assert turns == [True, False] * SumOfHalves.TURNS
    assert {way("small") for _ in range(20)} == {faster}
    assert way("large"), "another kind is measured anew"


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_no_gradients_there_where_none_are_wanted_here(cores: int) -> None:
    weight = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert not SumOfHalves()(lambda items: weight * sum(items), [1, 2], "kind", at_once=True).requires_grad
    assert SumOfHalves()(lambda items: weight * sum(items), [1, 2], "kind", at_once=True).requires_grad


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_an_error_in_one_half_is_an_error(cores: int) -> None:
    with pytest.raises(ZeroDivisionError):
        SumOfHalves()(lambda items: torch.tensor(1 / items[0]), [1, 0], "kind", at_once=True)
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
    assert torch.equal(by_two, by_one)


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


@pytest.mark.parametrize(("given", "threads"), [(None, 2), ("8", 8)], ids=["a quota", "what the user has set stays"])
def test_threads_are_as_many_as_processors(given, threads, monkeypatch) -> None:
    set_to = [8]
    monkeypatch.setattr(cpu.torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(cpu.torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(cpu, "processors", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    cpu.keep_to_processors.cache_clear()
    assert cpu.default_num_workers() == threads
    assert set_to[-1] == threads
    cpu.keep_to_processors.cache_clear()
