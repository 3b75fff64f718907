"""The extension is built again where it must be, says what it lacks, and drags nothing in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ON_CPU

import sharpkern

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sharpkern.__file__).parents[1]  # where the tests found it: here, or installed
SOURCES = ("csrc", "sharpkern", "setup.py", "pyproject.toml", "README.md", "LICENSE")
EXTENSION = "sharpkern.backend.native._kernels"

needs_extension = pytest.mark.skipif(not ON_CPU["native"].usable, reason=str(ON_CPU["native"].why_not))


def copy_sources(folder: Path) -> Path:
    """A copy of the sources, without what was built from them."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def python(
    *arguments: str, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the running Python in a folder."""
    inherited = {**os.environ, "PYTHONPATH": str(PACKAGE), **(environment or {})}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=inherited, capture_output=True, text=True)


def said(code: str, folder: Path) -> str:
    """What a program prints in a fresh interpreter, started in an empty folder."""
    done = python("-W", "error", "-c", textwrap.dedent(code), folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Building ---------------------------------------------------------------------------------------------------------


def quick_compiler(folder: Path) -> tuple[str, Path]:
    """A compiler that does not optimise and notes what it makes, and the file of its notes."""
    real = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if real is None:
        pytest.skip("there is no C++ compiler here")
    script, notes = folder / "quick++", folder / "compiled.txt"
    script.write_text(f'#!/bin/sh\nfor last; do :; done\necho "${{last##*/}}" >> {notes}\nexec {real} "$@" -O0\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script), notes


def test_only_what_depends_on_a_header_is_compiled_again(tmp_path: Path) -> None:
    pytest.importorskip("ninja")
    pytest.importorskip("pybind11")
    folder = copy_sources(tmp_path)
    compiler, notes = quick_compiler(tmp_path)

    def build() -> set[str]:
        notes.write_text("")
        environment = {"CXX": compiler, "SHARPKERN_CUDA": "0"}
        done = python("setup.py", "-q", "build_ext", "--inplace", folder=folder, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return {name for name in notes.read_text().split() if name.endswith(".o")}

    kernels = {"kernels_baseline.o", "kernels_avx2.o", "kernels_avx512.o"}
    assert build() == kernels | {"bindings.o", "ops.o"}
    built = list(folder.glob("sharpkern/backend/native/_kernels*.so"))
    assert len(built) == 1
    assert build() == set()
    (folder / "csrc/covariance.h").touch()
    assert build() == kernels
    assert build() == set()
    found = python("-c", f"import {EXTENSION} as m; print(m.__file__)", folder=folder, environment={"PYTHONPATH": ""})
    assert found.stdout.strip() == str(built[0]), found.stderr


NVCC = """#!/bin/sh
echo "$@" >> {notes}
case "$1" in
--version) echo "Cuda compilation tools, release {release}, V0" ;;
--list-gpu-arch) printf "compute_80\\ncompute_90\\n" ;;
-shared)
    for argument; do
        case "$argument" in *.o) objects="$objects $argument" ;; *.so) target="$argument" ;; esac
    done
    for object in $objects; do [ "$object" = "$target" ] || inputs="$inputs $object"; done
    exec g++ -shared $inputs -o "$target" ;;
*)
    for last; do :; done
    touch "$last.d"
    echo | exec g++ -x c++ -c - -o "$last" ;;
esac
"""


class Toolkit:
    """A folder like that of the CUDA toolkit, with an nvcc that compiles nothing and notes what it is asked for."""

    def __init__(self, folder: Path, release: str) -> None:
        self.notes = folder / "asked.txt"
        self.environment = {
            "CUDA_HOME": str(folder),
            "PYTHONPATH": "",
            "SHARPKERN_CUDA": "auto",
            "TORCH_CUDA_ARCH_LIST": "",
        }
        nvcc = folder / "bin/nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(NVCC.format(notes=self.notes, release=release))
        nvcc.chmod(0o755)

    def asked(self) -> list[str]:
        """The calls since the last time, but for questions."""
        calls = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return [call for call in calls if not call.startswith("--")]


def test_cuda_kernels_come_and_go_with_the_switch(tmp_path: Path) -> None:
    pytest.importorskip("ninja")
    folder = copy_sources(tmp_path)
    compiler, _ = quick_compiler(tmp_path)
    toolkit = Toolkit(tmp_path, "13.0")
    sources = {path.name for path in (folder / "csrc/cuda").glob("*.cu")}
    assert sources

    def build(**environment: str) -> tuple[set[str], list[str]]:
        arguments = ("setup.py", "-q", "build_ext", "--inplace")
        done = python(*arguments, folder=folder, environment={"CXX": compiler, **toolkit.environment, **environment})
        assert done.returncode == 0, done.stdout + done.stderr
        calls = toolkit.asked()
        compiled = {Path(word).name for call in calls for word in call.split() if word.endswith(".cu")}
        return compiled, [word for call in calls for word in call.split() if word.startswith("arch=")]

    assert build(SHARPKERN_CUDA="0") == (set(), [])
    compiled, generated = build()  # in the folder of a build without
    assert compiled == sources
    assert set(generated) == {  # it does not know 100
        "arch=compute_80,code=sm_80",
        "arch=compute_90,code=sm_90",
        "arch=compute_90,code=compute_90",
    }
    assert build(SHARPKERN_CUDA="1") == (set(), [])  # nothing has changed
    compiled, generated = build(TORCH_CUDA_ARCH_LIST="8.9 8.6+PTX")
    assert compiled == sources
    assert set(generated) == {
        "arch=compute_89,code=sm_89",
        "arch=compute_86,code=sm_86",
        "arch=compute_89,code=compute_89",
    }
    assert build(SHARPKERN_CUDA="0") == (set(), [])
    built = next(iter(folder.glob("sharpkern/backend/native/_kernels*.so")))
    code = f"import {EXTENSION} as m; print(m.cuda_architectures())"
    found = python("-c", code, folder=folder, environment={"PYTHONPATH": ""})
    assert found.stdout.strip() == "[]", f"{built}: {found.stderr}"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SHARPKERN_CUDA": "1", "CUDA_HOME": "", "PATH": "/nonexistent"}, "there is no nvcc"),
        ({"SHARPKERN_CUDA": "1"}, "is older than 12.1"),
        ({"SHARPKERN_CUDA": "yes"}, "SHARPKERN_CUDA=yes: wanted auto, 0 or 1"),
    ],
)
def test_a_wish_for_cuda_that_cannot_be_met(environment: dict[str, str], message: str, tmp_path: Path) -> None:
    compiler, _ = quick_compiler(tmp_path)
    toolkit = Toolkit(tmp_path, "11.8")
    environment = {"CXX": compiler, **toolkit.environment, **environment}
    done = python("setup.py", "build_ext", folder=copy_sources(tmp_path), environment=environment)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_architecture_that_is_none(tmp_path: Path) -> None:
    compiler, _ = quick_compiler(tmp_path)
    environment = {"CXX": compiler, **Toolkit(tmp_path, "12.4").environment, "TORCH_CUDA_ARCH_LIST": "Hopper"}
    done = python("setup.py", "build_ext", folder=copy_sources(tmp_path), environment=environment)
    assert done.returncode != 0
    assert "wanted numbers such as 8.0;9.0+PTX, not 'Hopper'" in done.stderr


COMMANDS = {
    "build_ext": ("setup.py", "build_ext"),
    "pip": ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--target", "to", "."),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_compiler_the_build_says_so(command: str, tmp_path: Path) -> None:
    modules = ("setuptools", "pybind11", *(["pip"] if command == "pip" else []))
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    done = python(
        *COMMANDS[command], folder=copy_sources(tmp_path), environment={"CXX": "/nonexistent/g++", "PYTHONPATH": ""}
    )
    assert done.returncode != 0
    for part in ("needs a C++17 compiler", "'/nonexistent/g++' is not on the PATH", "apt install g++"):
        assert part in done.stdout + done.stderr
    assert "Traceback" not in (done.stderr if command == "build_ext" else "")
    assert not list(tmp_path.rglob("*.so"))


# What was built ---------------------------------------------------------------------------------------------------


def inspect(*command: str) -> str:
    """What a tool says of the extension."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    spec = importlib.util.find_spec(EXTENSION)
    assert spec is not None
    assert spec.origin is not None
    return subprocess.run([*command, spec.origin], capture_output=True, text=True, check=True).stdout


@needs_extension
def test_the_extension_links_nothing_of_torch() -> None:
    needed = [line for line in inspect("readelf", "-d").splitlines() if "NEEDED" in line]
    assert any("libstdc++" in line for line in needed)
    assert not [line for line in needed if any(name in line for name in ("torch", "c10", "cuda", "python"))]


@needs_extension
def test_the_extension_wants_no_symbol_of_torch() -> None:
    wanted = inspect("nm", "-D", "-C", "--undefined-only").splitlines()
    assert wanted
    assert not [line for line in wanted if any(name in line for name in ("torch", "c10::", "at::", "caffe2", "THP"))]


STEP = """
    import torch
    import sharpkern

    p = torch.nn.Parameter(torch.randn(100_000))
    optimizer = sharpkern.SAM([p], lr=0.1, momentum=0.9, backend="{backend}")
    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    print(optimizer.backend)
"""


@needs_extension
def test_one_openmp_runtime_serves_torch_and_the_extension(tmp_path: Path) -> None:
    maps = 'print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "iomp" in line}))'
    name, libraries = said(textwrap.dedent(STEP.format(backend="auto")) + maps, tmp_path).splitlines()
    assert name == "native"
    assert len(libraries.split()) == 1


def test_the_import_loads_what_it_needs_alone(tmp_path: Path) -> None:
    modules = said(
        """
        import sys
        import torch
        before = set(sys.modules)
        import sharpkern
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
        """,
        tmp_path,
    ).split()
    assert "sharpkern" in modules
    assert not {"triton", "sklearn", "matplotlib", "rich", "tqdm", "argparse", "setuptools"} & set(modules)


def test_without_the_extension_the_reference_steps_in(tmp_path: Path) -> None:
    blocked = f'import sys\nsys.modules["{EXTENSION}"] = None\n'
    code = blocked + textwrap.dedent(STEP.format(backend="auto"))
    code += "print(optimizer.why_not)\nprint(*(b.why_not for b in sharpkern.backends() if b.name == 'native'))\n"
    name, optimizer, *statuses = said(code, tmp_path).splitlines()
    assert name == "reference"
    for reason in (optimizer, *statuses):
        assert "the extension is not built" in reason
        assert "install sharpkern again with a C++ compiler" in reason

    asked = python("-c", blocked + textwrap.dedent(STEP.format(backend="native")), folder=tmp_path)
    assert asked.returncode == 1
    last = asked.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: backend='native' cannot be used on cpu: the extension is not built")
