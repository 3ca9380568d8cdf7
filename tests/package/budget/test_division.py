"""How a given time is divided over trainings."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.base.errors import AutoplanError
from autoplan.budget import division
from autoplan.budget.division import PROMISE, Setting, Training, divide
from autoplan.cost.pace import START_SECONDS, Pace
from autoplan.planning.values import ALL

FOLDS = (42, 42, 42, 41, 41)
BOTH = (Pace("2d", 0.2, 0.5), Pace("3d_fullres", 0.5, 0.5))


def hippocampus(seconds: float, places: int = 1) -> Setting:
    """A command that predicts 52 images, too."""
    return Setting(seconds, FOLDS, 52, places)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("30m", 1800), ("30min", 1800), ("2h", 7200), ("2 h", 7200), ("1.5H", 5400),
     ("1h30m", 5400), ("1d", 86400)],
)  # fmt: skip
def test_a_time_as_people_type_it(text: str, seconds: float) -> None:
    assert division.parsed(text) == seconds


@pytest.mark.parametrize(
    "text", ["5", "-1h", "3 parsecs", "", "h", "0m", "1h-30m", "2h2", "1e3s", "nan", "inf h", "2hm"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(AutoplanError, match=r"--budget takes a time such as 30m, 2h or 1d, not '"):
        division.parsed(text)


@pytest.mark.parametrize(
    ("seconds", "trained", "left_out"),
    [
        pytest.param(30 * 3600, {"3d_fullres": [0, 1, 2, 3, 4], "2d": [0, 1, 2, 3, 4]}, 0, id="both, and the pair"),
        pytest.param(7200, {"3d_fullres": [0, 1, 2, 3, 4]}, 1, id="no other configuration"),
        pytest.param(2400, {"3d_fullres": [0, 1, 2]}, 2, id="no other configuration, fewer folds"),
        pytest.param(300, {"3d_fullres": [ALL]}, 2, id="one network on all cases"),
    ],
)
def test_what_there_is_no_time_for(seconds: float, trained: dict[str, list[int]], left_out: int) -> None:
    """First other configurations, then folds."""
    found = divide(seconds, BOTH, hippocampus(seconds))
    assert found.trainings == tuple(Training(name, fold) for name, folds in trained.items() for fold in folds)
    assert len(found.left_out) == left_out


def test_what_the_user_names_is_trained() -> None:
    folds = replace(hippocampus(600), named_folds=(1, 2))
    assert divide(600, BOTH, folds).trainings == tuple(Training("3d_fullres", fold) for fold in (1, 2))
    both = replace(hippocampus(1500), names_configurations=True)
    assert {t.configuration for t in divide(1500, BOTH, both).trainings} == {"2d", "3d_fullres"}


def test_too_short() -> None:
    """The message says what would do, and that does."""
    with pytest.raises(AutoplanError, match=r"30 iterations of one training, .* take about (\d+) min here") as refused:
        divide(60, BOTH, hippocampus(60))
    minutes = int(str(refused.value).rpartition("about ")[2].split()[0])
    assert divide(60 * minutes, BOTH, hippocampus(60 * minutes)).trainings == (Training("3d_fullres", ALL),)
    with pytest.raises(AutoplanError, match="is too short"):
        divide(60 * (minutes - 1), BOTH, hippocampus(60 * (minutes - 1)))


@pytest.mark.parametrize("places", [1, 3, 4, 8])
def test_too_short_for_several_at_a_time(places: int) -> None:
    slow = [Pace("3d_fullres", 5.0, 1.0)]
    short = replace(hippocampus(60, places), named_folds=(0, 1, 2, 3, 4))
    with pytest.raises(AutoplanError, match="30 iterations of 5 trainings") as refused:
        divide(60, slow, short)
    seconds = 60 * int(str(refused.value).rpartition("about ")[2].split()[0])
    assert len(divide(seconds, slow, replace(short, seconds=seconds)).trainings) == 5
    with pytest.raises(AutoplanError, match="is too short"):
        divide(seconds - 60, slow, replace(short, seconds=seconds - 60))


def test_one_network_on_all_cases_is_enough() -> None:
    """Nobody knows which one of two is the better one."""
    asked = replace(hippocampus(7200), named_folds=(ALL,))
    found = divide(7200, BOTH, asked)
    assert found.trainings == (Training("3d_fullres", ALL),)
    assert found.left_out == ("2d, and ensembles with it",)
    named = divide(7200, BOTH, replace(asked, names_configurations=True))
    assert {t.configuration for t in named.trainings} == {"2d", "3d_fullres"}


def test_waves() -> None:
    """The second stage of a cascade waits for the first, and for others on its way."""
    names = ["3d_fullres"] * 2 + ["3d_lowres"] * 3 + ["3d_cascade_fullres"] * 3
    some = [Training(name, fold) for fold, name in enumerate(names)]
    assert [[t.fold for t in wave] for wave in division.waves(some, 4)] == [[0, 1, 2, 3], [4], [5, 6, 7]]
    assert [len(wave) for wave in division.waves(some, 2)] == [2, 2, 1, 2, 1]
    assert division.waves([], 2) == []


@pytest.mark.parametrize(("seconds", "width"), [(7200, 16), (4 * 7200, 30)])
def test_networks_are_narrow_where_iterations_are_few(seconds: float, width: int) -> None:
    """A narrow network has more iterations in the same time."""
    wide, narrow = Pace("3d_fullres", 1.0, 0.5, (30, 60)), Pace("3d_fullres", 0.3, 0.2, (16, 32))
    assert divide(seconds, [wide, narrow], hippocampus(seconds)).paces == (wide if width == 30 else narrow,)


def test_several_at_a_time_get_more_each() -> None:
    alone, four = (divide(3600, BOTH, hippocampus(3600, places)).trainings for places in (1, 4))
    paces = {pace.configuration: pace for pace in BOTH}
    one = division.share(3600, alone, alone, paces, hippocampus(3600))
    assert division.share(3600, alone, alone, paces, hippocampus(3600, 4)) > 2 * one
    assert len(four) >= len(alone)


@given(
    seconds=st.floats(60, 1e6),
    names=st.sets(st.sampled_from(["2d", "3d_lowres", "3d_cascade_fullres"])),
    step=st.floats(0.01, 20),
    image=st.floats(0.01, 100),
    num_images=st.integers(0, 200),
    places=st.integers(1, 8),
)
def test_it_fits_and_is_worth_it(
    seconds: float, names: set[str], step: float, image: float, num_images: int, places: int
) -> None:
    """Trainings, their starts, validation and what comes after take the time at most; nothing is trained for fewer
    iterations than said; the second stage of a cascade comes with its first, and after it."""
    paces = [Pace(name, step, image) for name in ("3d_fullres", *names)]
    setting = Setting(seconds, FOLDS, num_images, places)
    try:
        found = divide(seconds, paces, setting).trainings
    except AutoplanError:
        return
    by_name = {pace.configuration: pace for pace in paces}
    each = division.share(seconds, found, found, by_name, setting)
    after = division.after(found, by_name, setting)
    firsts = [t for t in found if t.configuration != "3d_cascade_fullres"]
    total = after
    for stage in (firsts, found[len(firsts) :]):
        for wave in (stage[start : start + places] for start in range(0, len(stage), places)):
            besides = [START_SECONDS if t.fold == ALL else 2 * START_SECONDS + FOLDS[t.fold] * image for t in wave]
            total += each + max(besides)
    assert total == pytest.approx(seconds * (1 - division.KEPT))
    enough = division.LEAST if found[0].fold == ALL else division.WORTHWHILE
    assert division.iterations(each, by_name[found[0].configuration]) >= enough
    trained = list(dict.fromkeys(t.configuration for t in found))
    assert trained == sorted(trained, key=PROMISE.index)
    assert "3d_cascade_fullres" not in trained or "3d_lowres" in trained


@pytest.mark.parametrize(
    ("minutes", "step", "wanted", "expected"),
    [
        pytest.param(120, 1.0, {}, False, id="five folds of one configuration, 1,250 iterations each"),
        pytest.param(120, 1.5, {}, True, id="830 each"),
        pytest.param(120, 1.0, {"names_configurations": True}, True, id="two configurations, half as long each"),
        pytest.param(120, 1.5, {"named_folds": (0,)}, False, id="one fold"),
        pytest.param(1, 1.0, {}, True, id="no time at all"),
    ],
)
def test_time_is_short_where_folds_would_be_left_out(
    minutes: int, step: float, wanted: dict[str, Any], expected: bool
) -> None:
    paces = [Pace("2d", step, 0.1), Pace("3d_fullres", step, 0.1)]
    setting = Setting(60 * minutes, (16,) * 5, 40, **wanted)
    assert division.is_short(60 * minutes, paces, setting) is expected
    if not wanted and not expected:
        assert len(divide(60 * minutes, paces, setting).trainings) == 5


@pytest.mark.parametrize(
    ("spacing", "first"),
    [((1, 1, 1), "3d_fullres"), ((2, 2, 5.9), "3d_fullres"), ((2, 2, 6), "2d"), ((1.5, 1.5, 10), "2d")],
)
def test_2d_promises_most_where_slices_are_thick(spacing: tuple[float, ...], first: str) -> None:
    """A second configuration gets time where there is plenty of it."""
    setting = replace(hippocampus(0), promise=division.promise(spacing))
    assert sorted(setting.promise) == sorted(PROMISE)
    paces = [Pace("2d", 1, 0.1), Pace("3d_fullres", 1, 0.1)]
    for seconds, number in ((3600, 1), (10**5, 2)):
        trained = dict.fromkeys(t.configuration for t in divide(seconds, paces, setting).trainings)
        assert next(iter(trained)) == first
        assert len(trained) == number


def test_a_cascade_needs_its_first_stage() -> None:
    three = [*BOTH, Pace("3d_cascade_fullres", 0.5, 0.5)]
    with pytest.raises(AutoplanError, match="needs all folds of 3d_lowres"):
        divide(7200, three, replace(hippocampus(7200), names_configurations=True))
    assert "3d_cascade_fullres" not in {t.configuration for t in divide(10**6, three, hippocampus(10**6)).trainings}


def test_epochs_are_short_where_there_are_few_iterations() -> None:
    """At the end of each there is a network to use."""
    assert [division.epoch_length(START_SECONDS + n, Pace("2d", 1, 1)) for n in (10, 400, 1000, 10**5)] == [
        5,
        20,
        50,
        100,
    ]
