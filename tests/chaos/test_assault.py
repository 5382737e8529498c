"""An assault on a run's folder. What it may cost is in docs/reliability.md, with the figures of the long tests."""

import resource
import subprocess

import pytest
from harness import Place, Tally, corruptions, full_disks, kills, resumed, unfinished


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("chaos"))


@pytest.fixture
def tally(capsys):
    """A tally, which is printed at the end and must have no failed case."""
    tally = Tally()
    yield tally
    with capsys.disabled():
        print(f"\n{tally}")
    assert tally.tried and not tally.failed, str(tally)


SOME, ALL = pytest.param(8, id="some"), pytest.param(None, marks=pytest.mark.long, id="all")
MOST = pytest.mark.parametrize("most", [SOME, ALL])


@MOST
def test_a_kill_before_any_file_operation_costs_nothing(place, tally, most):
    kills(place, tally, most)


@MOST
def test_a_disk_that_is_full_from_any_file_operation_on_costs_no_result(place, tally, most):
    full_disks(place, tally, most and 4)


@MOST
def test_a_damaged_file_of_a_finished_run_is_named_and_made_anew(place, tally, most):
    corruptions(place, tally, place.reference, "a file of a finished run", n=4, most=most)


@pytest.mark.long
def test_a_damaged_file_of_an_unfinished_run_is_passed_over_or_named(place, tally, tmp_path):
    unfinished(place, tmp_path / "half")
    corruptions(place, tally, tmp_path / "half", "a file of an unfinished run", n=2)


@pytest.mark.parametrize(
    "bytes_", [pytest.param(n, marks=[pytest.mark.long] if n != 8_000 else []) for n in (0, 500, 3_000, 8_000, 20_000)]
)
def test_a_limit_on_the_size_of_files_is_one_line(place, tally, bytes_):
    """What Orbax writes from C++ meets it too."""
    place.put(None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        said = place.again()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    faults = [] if said.one_line else [said.end]
    tally.case("a limit on the size of files", f"{bytes_} bytes", faults or resumed(place))


@pytest.mark.long
@pytest.mark.parametrize("kib", [4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024])
def test_a_small_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(place, tally, kib):
    """A file system of its own, where it may be mounted: as root."""
    place.put(None)
    place.run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place.run)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is for root")
    try:
        said = place.again()
        faults = [] if said.one_line or (said.code == 0 and "Traceback" not in said.text) else [said.end]
        subprocess.run(["mount", "-o", "remount,size=64m", str(place.run)], check=True)
        tally.case("a small disk", f"{kib} KiB", faults or resumed(place))
    finally:
        subprocess.run(["umount", str(place.run)], check=True)
