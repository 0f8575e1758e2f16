"""What the package says of the Python that it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("python", "fits"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)])
def test_a_python_that_dependencies_do_not_support_is_refused_before_anything_is_installed(python, fits):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert SpecifierSet(wanted).contains(".".join(map(str, python))) == fits
    check = re.search(r"\$\(PYTHON\) -c '(import sys; assert [^']+)'", (ROOT / "Makefile").read_text()).group(1)
    pretended = f"import sys; sys.version_info = {python}; {check}"
    ended = subprocess.run([sys.executable, "-c", pretended], capture_output=True, text=True)
    assert (ended.returncode == 0) == fits
    assert fits or "Cinevox needs Python 3.11 to 3.13" in ended.stderr
