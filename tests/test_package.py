"""What `pip install` puts where: the declared packages and data are those on disk, and the wheel works on its own."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APART = {".ci", "tests", "studies", "benchmarks", "docs"}
NOT_DATA = {".py", ".pyc"}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked() -> list[Path]:
    """Files of the repository, relative to it."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def package_name(folder: Path) -> str:
    return ".".join(("periscope", *folder.parts))


def test_the_declared_packages_are_those_on_disk() -> None:
    folders = {path.parent for path in tracked() if path.name == "__init__.py"}
    found = {package_name(folder) for folder in folders if not folder.parts or folder.parts[0] not in APART}
    assert set(SETUPTOOLS["packages"]) == found and len(SETUPTOOLS["packages"]) == len(found)
    assert SETUPTOOLS["package-dir"] == {"periscope": "."}


def test_every_python_file_is_in_a_package() -> None:
    folders = {package_name(path.parent) for path in tracked() if path.suffix == ".py" and path.parts[0] not in APART}
    assert folders <= set(SETUPTOOLS["packages"])


def test_the_declared_data_are_the_data_on_disk() -> None:
    """Each file beside the code is declared, and each pattern finds something."""
    patterns = {
        (Path(*package.split(".")[1:]) / pattern).as_posix()
        for package, some in SETUPTOOLS["package-data"].items()
        for pattern in some
    }
    folders = [Path(*name.split(".")[1:]) for name in SETUPTOOLS["packages"] if name != "periscope"]
    beside = {
        path.as_posix()
        for path in tracked()
        if path.suffix not in NOT_DATA and any(path.is_relative_to(folder) for folder in folders)
    } | {"py.typed"}
    undeclared = {name for name in beside if not any(fnmatch(name, pattern) for pattern in patterns)}
    assert not undeclared
    assert all(any(fnmatch(name, pattern) for name in beside) for pattern in patterns)


def test_the_version_is_said_once() -> None:
    import periscope

    assert f"[{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    try:
        installed = importlib.metadata.version(PROJECT["name"])
    except importlib.metadata.PackageNotFoundError:
        installed = "0+unknown"
    assert periscope.__version__ == installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the repository's files, not from what else lies in the folder."""
    pytest.importorskip("setuptools", minversion="77")
    home = tmp_path_factory.mktemp("wheel")
    for path in tracked():
        (home / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, home / "source" / path)
    call = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(home), "."]
    subprocess.run(call, cwd=home / "source", check=True)
    (built,) = home.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_one_package_and_all_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"periscope_adapters-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"periscope", info}
    ours = {path.as_posix() for path in tracked() if path.parts[0] not in APART}
    code = {name for name in ours if name.endswith(".py")}
    data = {name for name in ours if name.startswith(("recipes/", "demo/backbones/"))}
    data |= {"evaluation/report/report.html", "evaluation/tasks/benchmarks.toml", "py.typed"}
    assert len(code) > 150 and len(data) > 40
    inside = {name.removeprefix("periscope/") for name in names if name.startswith("periscope/")}
    assert inside == code | data
    assert not any(name.split("/")[0] in APART for name in inside)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Nothing but the installed wheel and its dependencies: no clone, no file in the current folder."""
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    call = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run(call, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def periscope(*arguments: str) -> str:
        return run(str(site / "bin" / "periscope"), *arguments)

    where, version = run("-c", "import periscope as p; print(p.__file__); print(p.__version__)").splitlines()
    assert Path(where).is_relative_to(site) and version == PROJECT["version"]
    shown = periscope("--help")
    assert "precompute" in shown and "train" in shown and "eval" in shown
    listed = periscope("train", "--list")
    assert all(path.stem in listed for path in (ROOT / "recipes").glob("*.toml") if not path.stem.startswith("demo"))
    assert "features/demo is ready" in periscope("precompute", "--limit", "48", "--device", "cpu")
    flags = ("--adapter", "mlp16", "--steps", "5", "--batch", "8", "--eval-every", "5", "--name", "a")
    assert "language model is unchanged" in periscope("train", *flags, "--device", "cpu")
    picture, *_ = pictures = sorted((home / "demo/media").rglob("*.jpg"))
    answer = periscope("eval", "--image", str(picture), "--prompt", "How many objects are there?", "--device", "cpu")
    assert answer.strip()

    (home / "photos").mkdir()
    for number, file in enumerate(pictures[:40]):
        shutil.copy(file, home / "photos" / f"{number}.jpg")
        (home / "photos" / f"{number}.txt").write_text(f"picture number {number}\n")
    periscope("precompute", "--data", "photos", "--encoder", "demo", "--device", "cpu")
    periscope("train", *flags[:-1], "b", "--features", "features/photos", "--device", "cpu")
    periscope("eval", "--max-new-tokens", "8", "--device", "cpu")
    assert (home / "runs/b/eval.json").is_file() and (home / "runs/b/report.html").is_file()
    assert not (home / "periscope").exists()


@pytest.mark.slow
def test_another_project_called_adapters_changes_nothing(wheel: Path, tmp_path: Path) -> None:
    """PyPI's `adapters` is another project, and installs a top-level module of that name; so may any other package."""
    site = tmp_path / "site"
    call = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run(call, check=True)
    for name in ("adapters", "training", "evaluation", "shards", "recipes", "train", "eval", "demo"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('not Periscope')\n")
    code = (
        "import sys; from periscope import load; import periscope.adapters.model, periscope.demo.scenes\n"
        "from periscope.recipes import recipe_names; assert 'llava-1.5' in recipe_names()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'adapters', 'training', 'shards', 'train'}))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


def test_importing_the_package_is_instant_and_warns_of_nothing() -> None:
    """Nothing large is imported until it is used. Processor time, so that other work on the machine doesn't count."""
    code = (
        "import sys, time; began = time.process_time(); import periscope; spent = time.process_time() - began\n"
        "assert not {'torch', 'numpy', 'transformers', 'tyro', 'PIL'} & set(sys.modules); print(spent)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert float(done.stdout) < 0.3


def test_every_dependency_has_an_oldest_version_to_try() -> None:
    """The lower bounds that .ci/oldest installs: of what Periscope needs, and of each extra for its users."""
    wanted = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "dev" for line in lines]
    lines = [line for line in [*PROJECT["dependencies"], *wanted] if not line.startswith(PROJECT["name"])]
    assert len(lines) > 20 and [line for line in lines if not re.search(r">=\d", line)] == []
    assert "--resolution lowest-direct" in (ROOT / ".ci/oldest").read_text()
