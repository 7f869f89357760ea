"""The set-up: its checks and their remedies, its decisions, the pins, and an import contract that bites."""

import collections
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.]*)")
Usage = collections.namedtuple("Usage", "total used free")


def _load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


preflight = _load("preflight")
setup_venv = _load("setup_venv")


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    return {match[1]: match[2] for match in matches}


# -- preflight ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 9), (3, 14, 0), (3, 14, 2)])
def test_supported_versions_pass(version):
    preflight.check_version(version)


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 10, 13), (3, 14, 1), (3, 15, 0), (4, 0, 0)])
def test_other_versions_are_refused_in_one_line_with_the_remedy(version):
    with pytest.raises(preflight.PreflightError, match=r"make PYTHON=python3\.12 \.\.\.$") as caught:
        preflight.check_version(version)
    assert ".".join(map(str, version)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_version_range_is_the_one_in_the_metadata():
    assert importlib.metadata.metadata("laplace-lora")["Requires-Python"] == "<3.15,>=3.11"
    assert (preflight.OLDEST, preflight.NEWEST) == ((3, 11), (3, 14))


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_missing_venv_or_ensurepip_names_the_system_package(missing):
    def import_module(name):
        if name == missing:
            raise ImportError(name)

    with pytest.raises(preflight.PreflightError, match=rf"'{missing}' module.*apt install python3\.\d+-venv\)$"):
        preflight.check_venv(import_module)


def test_little_disk_is_refused_with_the_figures():
    with pytest.raises(preflight.PreflightError, match=r"^2\.0 GB free .* about 6 GB; .* larger disk$"):
        preflight.check_disk(".", disk_usage=lambda _: Usage(0, 0, 2 * preflight.GB))


def test_disk_counts_what_the_old_environment_gives_back():
    note = preflight.check_disk(".", reclaimed=3 * preflight.GB, disk_usage=lambda _: Usage(0, 0, 4 * preflight.GB))
    assert "not for a CUDA build" in note
    assert preflight.check_disk(".", disk_usage=lambda _: Usage(0, 0, 50 * preflight.GB)) is None


def test_small_temporary_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.tempfile, "gettempdir", lambda: str(tmp_path))
    free = {str(tmp_path): 10**8}
    with pytest.raises(preflight.PreflightError, match=r"make TMPDIR=/some/folder \.\.\.$"):
        preflight.check_disk(".", disk_usage=lambda folder: Usage(0, 0, free.get(folder, 50 * preflight.GB)))


def test_preflight_parses_under_old_pythons():
    """No f-strings, annotations or the like: Python 2 and 3.5 must get as far as the message."""
    source = (ROOT / "tools" / "preflight.py").read_text(encoding="utf-8")
    compile(source, "preflight.py", "exec", flags=0, dont_inherit=True)
    assert not re.search(r"\bf['\"]|->|:=|\bmatch |raise .* from ", source.replace("::", ""))


def test_setup_script_refuses_an_interpreter_that_is_not_there():
    environment = {**os.environ, "PYTHON": "no-such-python"}
    result = subprocess.run(
        ["sh", str(ROOT / "tools" / "setup.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"set-up: no Python runs as 'no-such-python'; .* make PYTHON=python3\.12 \.\.\.\n", result.stderr
    )


# -- what is done to .venv ----------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a complete environment, as far as the set-up can see."""
    now = 1_700_000_000
    for name in setup_venv.INPUTS:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (now, now))
    python = setup_venv.environment_python(tmp_path / ".venv")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    stamp = tmp_path / ".venv" / ".stamp"
    stamp.write_text(
        json.dumps({"interpreter": setup_venv.made_by(), "pip_args": "--no-cache-dir", "root": str(tmp_path)})
    )
    os.utime(stamp, (now + 60, now + 60))
    return tmp_path


def _action(checkout, asked_for=False, pip_args=""):
    return setup_venv.decide(checkout, asked_for, pip_args)[0]


def test_complete_environment_is_kept(checkout):
    assert _action(checkout) == "keep"
    assert _action(checkout, asked_for=True, pip_args="--no-cache-dir") == "keep"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_newer_input_brings_it_up_to_date(checkout, name):
    os.utime(checkout / name)
    assert _action(checkout) == "update"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"interpreter": "3.11.0 /usr"'])
def test_environment_without_a_whole_stamp_is_made_anew(checkout, content):
    stamp = checkout / ".venv" / ".stamp"
    if content is None:
        stamp.unlink()
    else:
        stamp.write_text(content)
    assert _action(checkout) == "rebuild"


def test_absent_environment_is_made(checkout):
    shutil.rmtree(checkout / ".venv")
    assert _action(checkout) == "rebuild"


def test_environment_whose_interpreter_went_is_made_anew(checkout):
    python = setup_venv.environment_python(checkout / ".venv")
    python.unlink()
    python.symlink_to(checkout / "gone")
    assert _action(checkout) == "rebuild"


def test_other_interpreter_counts_only_if_asked_for(checkout, monkeypatch):
    monkeypatch.setattr(setup_venv, "made_by", lambda: "3.12.9 /elsewhere")
    assert _action(checkout) == "keep"
    assert _action(checkout, asked_for=True) == "rebuild"


def test_other_pip_arguments_make_it_anew(checkout):
    assert _action(checkout, pip_args="--pre") == "rebuild"


def test_moved_checkout_is_made_anew(checkout, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "checkout"
    checkout.rename(moved)
    assert _action(moved) == "rebuild"


def test_interrupted_installation_leaves_no_stamp(checkout, monkeypatch):
    def interrupted(root, pip_args):
        raise KeyboardInterrupt

    os.utime(checkout / "constraints.txt")
    monkeypatch.setattr(setup_venv.preflight, "check_disk", lambda *_, **__: None)
    monkeypatch.setattr(setup_venv, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup_venv.set_up(checkout, False, "")
    assert _action(checkout) == "rebuild"


def test_update_keeps_the_pip_arguments_and_the_interpreter(checkout, monkeypatch):
    seen = []
    os.utime(checkout / "constraints.txt", (1_700_000_090, 1_700_000_090))
    monkeypatch.setattr(setup_venv.preflight, "check_disk", lambda *_, **__: None)
    monkeypatch.setattr(setup_venv, "install", lambda root, pip_args: seen.append(pip_args))
    setup_venv.set_up(checkout, False, "")
    assert seen == ["--no-cache-dir"]
    assert _action(checkout, asked_for=True) == "keep"


# -- pins ---------------------------------------------------------------------------------------------------------


def test_every_line_is_a_public_version_of_one_package():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not PIN.fullmatch(line)] == []
    assert pins == sorted(pins, key=lambda line: line.split("==")[0])
    assert len({line.split("==")[0] for line in pins}) == len(pins)
    assert not any("://" in line for line in lines)


def test_everything_the_set_up_needs_is_pinned_and_installed_at_its_pin():
    pins = _pins()
    waiting = [Requirement(line) for line in setup_venv.requirements(ROOT)]
    seen, wrong = set(), []
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        version = Version(importlib.metadata.version(name)).public
        if name not in pins:
            wrong.append(f"{name}=={version} has no line in constraints.txt")
        elif Version(pins[name]) != Version(version):
            wrong.append(f"{name} {version} is installed, {pins[name]} is pinned")
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    assert sorted(wrong) == []


def test_pins_are_inside_the_promised_ranges():
    pins = _pins()
    for line in setup_venv.requirements(ROOT):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_direct_dependencies_have_a_lower_bound():
    for line in importlib.metadata.requires("laplace-lora"):
        requirement = Requirement(line)
        assert any(clause.operator in {">=", "=="} for clause in requirement.specifier), line


def test_core_dependencies_are_these_alone():
    core = {Requirement(line).name for line in importlib.metadata.requires("laplace-lora") if "extra ==" not in line}
    assert core == {"numpy", "peft", "safetensors", "scipy", "torch", "tqdm", "transformers", "typer"}


# -- the import contract ------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A copy of the sources, to plant violations in."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _lint(copy):
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_contract_holds(copy):
    result = _lint(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "planted", "message"),
    [
        ("errors.py", "import laplace_lora.config", "laplace_lora.errors is not allowed to import laplace_lora.config"),
        ("likelihoods.py", "import laplace_lora.laplace", "is not allowed to import laplace_lora.laplace"),
        ("likelihoods.py", "import transformers", "laplace_lora.likelihoods is not allowed to import transformers"),
        ("readouts/inputs.py", "from peft import PeftModel", "laplace_lora.readouts is not allowed to import peft"),
        ("laplace.py", "import peft", "laplace_lora.laplace is not allowed to import peft"),
    ],
)
def test_contract_bites(copy, module, planted, message):
    with open(copy / "src" / "laplace_lora" / module, "a", encoding="utf-8") as file:
        file.write(f"\n{planted}\n")
    result = _lint(copy)
    assert result.returncode == 1
    assert message in " ".join(result.stdout.split())


def test_new_module_needs_a_floor(copy):
    (copy / "src" / "laplace_lora" / "stray.py").write_text('"""On no floor."""\n', encoding="utf-8")
    result = _lint(copy)
    assert result.returncode == 1
    assert "stray" in result.stdout
