"""native/tests: every kernel against the scalar one, without Python; for 64-bit ARM under an emulator."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
ARM_PACKAGES = "g++-aarch64-linux-gnu qemu-user-static"

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("cmake", path=TOOLS["PATH"]) is None, reason="cmake is not installed"),
]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=TOOLS, text=True, capture_output=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def build(name: str, *options: str) -> str:
    """The test program, after a build of the whole library that warned of nothing."""
    folder = f"build/{name}"
    common = ("-DCMAKE_BUILD_TYPE=Release", "-DCORRAL_PYTHON=OFF", "-DCORRAL_NATIVE_TESTS=ON")
    run("cmake", "-S", ".", "-B", folder, "-G", "Ninja", *common, "-DCMAKE_CXX_FLAGS=-Werror", *options)
    run("cmake", "--build", folder, "-j2")
    return f"{folder}/test_native"


@pytest.fixture(scope="module")
def arm_program() -> str:
    if not (shutil.which(ARM_COMPILER) and shutil.which(EMULATOR)):
        pytest.skip(f"no cross compiler or emulator; on Debian or Ubuntu: apt install {ARM_PACKAGES}")
    return build("aarch64", "-DCMAKE_TOOLCHAIN_FILE=native/tests/aarch64-linux.cmake")


def test_neon_kernels_equal_the_scalar_ones(arm_program: str):
    assert "neon matmul ok" in run(EMULATOR, "-cpu", "max", arm_program)


def test_processor_without_dot_products_runs_the_scalar_kernels(arm_program: str):
    told = run(EMULATOR, "-cpu", "cortex-a53", arm_program)
    assert "scalar matmul ok" in told
    assert "neon" not in told


@pytest.mark.slow
def test_kernels_of_this_machine_equal_the_scalar_ones():
    assert "scalar matmul ok" in run(build("tests"))
