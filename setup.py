"""Builds the extension `sharpkern.backend.native._kernels`; everything else stands in pyproject.toml.

The extension includes no header of torch, so the build needs setuptools, pybind11, ninja and a C++17 compiler, and for
the CUDA kernels nvcc, but no GPU. ninja tracks the headers: after a change only what depends on it is compiled again.

Read from the environment:
    CXX                   the C++ compiler
    SHARPKERN_CUDA        auto (CUDA kernels if nvcc is found), 0 or 1
    CUDA_HOME             where nvcc is looked for before the PATH
    TORCH_CUDA_ARCH_LIST  architectures, such as "8.0;9.0+PTX"
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = (
    "-std=c++17 -O3 -fPIC -fopenmp -fvisibility=hidden -Wall -Wextra"
    " -fno-math-errno -fno-trapping-math -ffp-contract=off"  # rounded where the formulas say, as torch does
)
ISA_FLAGS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512",
}
RULES = """\
rule compile
  command = $cxx -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = c++ $out
rule cuda
  command = $nvcc -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $out
rule link
  command = $linker $in -o $out
  description = link $out
"""
# Rounded where the formulas say; statically linked, so that the module loads where there is no driver.
CUDA_FLAGS = (
    "-std=c++17 -O3 --fmad=false -cudart static -Xfatbin -compress-all"
    " -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
)
LONGEST = ("ascend", "descend", "mixed")  # of the CUDA sources, to compile: they come first
CUDA_VERSION = (12, 1)  # the first with kernel parameters of 32 KB
ARCHITECTURES = "8.0;9.0;10.0"
NO_COMPILER = """
sharpkern needs a C++17 compiler to build its CPU kernels and found none: '{cxx}' is not on the PATH.
Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: conda install gxx), or name
yours in the environment variable CXX, and install again.
"""
NO_NVCC = """
SHARPKERN_CUDA=1 asks for the CUDA kernels, and {reason}.
Install the CUDA toolkit, from version 12.1 on, and put its nvcc on the PATH or name its folder in CUDA_HOME; or set
SHARPKERN_CUDA=0 to build without CUDA.
"""


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, else g++, else c++ or clang++."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["g++", "c++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    sys.exit(NO_COMPILER.format(cxx=candidates[0]))


def ninja() -> str:
    """The ninja that the build requirement installed, or one on the PATH."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        return shutil.which("ninja") or sys.exit("sharpkern needs ninja to build: pip install ninja")
    return str(Path(BIN_DIR) / "ninja")


def nvcc() -> str | None:
    """The CUDA compiler to build with, or None without CUDA kernels: what SHARPKERN_CUDA asks for."""
    wanted = os.environ.get("SHARPKERN_CUDA", "auto")
    if wanted not in {"auto", "0", "1"}:
        sys.exit(f"SHARPKERN_CUDA={wanted}: wanted auto, 0 or 1")
    if wanted == "0":
        return None
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = os.pathsep.join([*(str(Path(home) / "bin") for home in homes if home), os.environ.get("PATH", "")])
    found, reason = shutil.which("nvcc", path=places), "there is no nvcc"
    if found:
        said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"release (\d+)\.(\d+)", said)
        if version and tuple(map(int, version.groups())) >= CUDA_VERSION:
            return found
        reason = f"{found} is older than {'.'.join(map(str, CUDA_VERSION))}"
    if wanted == "1":
        sys.exit(NO_NVCC.format(reason=reason))
    print(f"sharpkern is built without CUDA kernels: {reason}")
    return None


def architectures(nvcc: str) -> tuple[list[str], list[str]]:
    """The GPU architectures to compile for, such as 90, and the flags of nvcc that say so.

    Args:
        nvcc: The compiler; what it does not know is left out of the default list.

    Returns:
        Names and flags; later GPUs run the newest, which is there as PTX too.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    entries = (named or ARCHITECTURES).replace(";", " ").split()
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    names, flags = [], []
    for entry in entries:
        match = re.fullmatch(r"(\d+)\.(\d+)(\+PTX)?", entry)
        if not match:
            sys.exit(f"TORCH_CUDA_ARCH_LIST={named}: wanted numbers such as 8.0;9.0+PTX, not {entry!r}")
        name = match[1] + match[2]
        if named or f"compute_{name}" in known:
            names.append(name)
            flags.append(f"-gencode arch=compute_{name},code=sm_{name}")
    newest = max(names, key=int)
    return names, [*flags, f"-gencode arch=compute_{newest},code=compute_{newest}"]


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links one extension.

        Args:
            ext: The extension; its sources are relative to this file.
        """
        import pybind11

        cxx = compiler()
        here = Path(__file__).resolve().parent
        # not self.build_temp, which pip makes anew each time: what is up to date need not be compiled again
        folder = here / "build" / f"native-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        root = here / "csrc"
        include = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
        cuda, linker, defines, units = nvcc(), f"{shlex.join(cxx)} -shared -fopenmp", "", []
        if cuda:
            names, generate = architectures(cuda)
            host = f"-ccbin {shlex.quote(cxx[0])}"
            flags = f"{CUDA_FLAGS} {host} {' '.join(generate)}"
            linker = f"{cuda} -shared -cudart static -Xlinker --exclude-libs,ALL {host} -Xcompiler -fopenmp"
            defines = f"-DSHARPKERN_CUDA_ARCHITECTURES='\"{','.join(names)}\"'"
            sources = sorted((root / "cuda").glob("*.cu"), key=lambda x: x.stem not in LONGEST)
            units = [(f"cuda_{x.stem}.o", "cuda", x, flags) for x in sources]
        units += [
            ("bindings.o", "compile", root / "bindings.cpp", f"{FLAGS} {defines} {include}"),
            ("ops.o", "compile", root / "cpu/ops.cpp", FLAGS),
            *(
                (f"kernels_{isa}.o", "compile", root / "cpu/kernels.cpp", f"{FLAGS} {flags} -DSHARPKERN_ISA={isa}")
                for isa, flags in ISA_FLAGS.items()
            ),
        ]
        lines = [f"cxx = {shlex.join(cxx)}", f"nvcc = {cuda}", f"linker = {linker}", RULES]
        for name, rule, source, flags in units:
            lines.append(f"build {name}: {rule} {source}\n  flags = {flags}")
        lines.append(f"build {target}: link {' '.join(name for name, *_ in units)}\n")
        (folder / "build.ninja").write_text("\n".join(lines))
        subprocess.run([ninja(), "-C", str(folder), "--quiet" if not self.verbose else "-v"], check=True)


def extensions() -> list[Extension]:
    """The native extension where it has kernels to offer: Linux on x86-64. Elsewhere the reference works alone."""
    if sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64"):
        return [Extension("sharpkern.backend.native._kernels", sources=["csrc/bindings.cpp"])]
    return []


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
