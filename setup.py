"""Builds the extension `sharpkern.backend.native._kernels`; everything else stands in pyproject.toml.

The extension includes no header of torch, so the build needs setuptools, pybind11, ninja and a C++17 compiler.
ninja tracks the headers: after a change only what depends on it is compiled again.
"""

from __future__ import annotations

import os
import platform
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
rule nvcc
  command = nvcc -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $out
rule link
  command = $cxx -shared -fopenmp $in $libs -o $out
  description = link $out
"""
NO_COMPILER = """
sharpkern needs a C++17 compiler to build its CPU kernels and found none: '{cxx}' is not on the PATH.
Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: conda install gxx), or name
yours in the environment variable CXX, and install again.
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


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links one extension.

        Args:
            ext: The extension; its sources are relative to this file.
        """
        import pybind11

        cxx = compiler()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        root = Path(__file__).resolve().parent / "csrc"
        include = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
        units = [
            ("bindings.o", root / "bindings.cpp", f"{FLAGS} {include}"),
            ("ops.o", root / "cpu/ops.cpp", FLAGS),
            *(
                (f"kernels_{isa}.o", root / "cpu/kernels.cpp", f"{FLAGS} {flags} -DSHARPKERN_ISA={isa}")
                for isa, flags in ISA_FLAGS.items()
            ),
        ]
        libs = ""
        if os.environ.get("SHARPKERN_CUDA") == "1":
            archs = ["80", "90", "100"]
            flags = (
                "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -cudart static --fmad=false"
                + " -Xfatbin -compress-all "
                + " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in archs)
            )
            flags += f" -gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"
            cuda = [(f"cuda_{path.stem}.o", path, flags) for path in sorted((root / "cuda").glob("*.cu"))]
            units[0] = (*units[0][:2], units[0][2] + f' -DSHARPKERN_CUDA_ARCHITECTURES=\\"{",".join(archs)}\\"')
            units += cuda
            home = Path(
                subprocess
                .run(["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
                .stderr.split("_HERE_=")[1]
                .split()[0]
            ).parent
            libs = f"-L{home}/lib64 -lcudart_static -ldl -lrt -lpthread -Wl,--exclude-libs,ALL"
        lines = [f"cxx = {shlex.join(cxx)}", f"libs = {libs}", RULES]
        for name, source, flags in units:
            lines.append(f"build {name}: {'nvcc' if source.suffix == '.cu' else 'compile'} {source}\n  flags = {flags}")
        lines.append(f"build {target}: link {' '.join(name for name, _, _ in units)}\n")
        (folder / "build.ninja").write_text("\n".join(lines))
        subprocess.run([ninja(), "-C", str(folder), "--quiet" if not self.verbose else "-v"], check=True)


def extensions() -> list[Extension]:
    """The native extension where it has kernels to offer: Linux on x86-64. Elsewhere the reference works alone."""
    if sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64"):
        return [Extension("sharpkern.backend.native._kernels", sources=["csrc/bindings.cpp"])]
    return []


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
