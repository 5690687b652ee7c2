"""What `import quire` costs and what it offers."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import quire


def test_importing_the_package_loads_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import quire; print(*set(sys.modules) - before)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name for name in output.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"quire"}


def test_every_name_can_be_had_without_torch() -> None:
    code = (
        "import sys, quire; [getattr(quire, name) for name in quire.__all__]; print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LLLM"):
        _ = quire.LLLM


def test_the_release_is_the_installed_one() -> None:
    assert quire.__version__ == version("quire")
