"""The LaTeX table: what it says, and that no name can say more."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import summarise
from pipeline.records import Score, Scores
from pipeline.reporting.latex import escape, write_latex

OURS = {
    "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "downarrow", "uparrow", "rightarrow",
    "pm", "mathbf", "usepackage",
}  # fmt: skip
PRINTED = {"textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar"}


def result(methods, regions=("mask",)):
    rows = [
        Score(case=f"c{i}", patient=f"p{i}", method=m, region=r, metric="mae", value=v, unit="HU", better="lower")
        for r in regions for m, values in methods.items() for i, v in enumerate(values)
    ]  # fmt: skip
    profile = {"name": "synthrad_2025", "metrics": {"mae": {"title": "MAE"}}}
    return Scores(schema=1, profile=profile, scores=rows, summary=summarise(rows))


def written(tmp_path, scores):
    write_latex(tmp_path / "summary.tex", scores)
    return (tmp_path / "summary.tex").read_text()


def test_a_table_per_region_with_the_best_in_bold(tmp_path):
    text = written(tmp_path, result({"net": [20.0, 30.0], "other_net": [40.0, None]}, ("mask", "body")))
    assert text.count(r"\begin{table}") == text.count(r"\end{tabular}") == 2
    assert r"\caption{Profile synthrad\_2025, region mask: mean and standard deviation over 2 patients.}" in text
    assert r"Method & MAE (HU) $\downarrow$ \\" in text
    assert r"net & $\mathbf{25.0 \pm 7.1}$ \\" in text
    assert r"other\_net & $40.0$ (1 of 2 cases) \\" in text


def test_what_is_undefined_is_a_dash_and_never_the_best(tmp_path):
    text = written(tmp_path, result({"a": [None], "b": [3.0]}))
    assert r"a & -- (0 of 1 cases) \\" in text and r"b & $3.0$ \\" in text


@given(st.text(st.sampled_from("\\{}$&#^_~%<>|\"'\n\r\t\0\u2028ainput "), max_size=30))
def test_a_name_is_printed_and_runs_nothing(name):
    text = escape(name)
    assert text.isprintable()
    commands = re.findall(r"\\([a-zA-Z]+|.)", text)
    assert set(commands) <= PRINTED | set("{}$&#_%")
    bare = re.sub(r"\\([a-zA-Z]+\{\}|.)|\{''\}", "", text)
    assert not set(bare) & set('\\{}$&#^_~%<>|"')


def test_hostile_methods_keep_the_table_whole(tmp_path):
    names = [r"\input{/etc/passwd}", "50 % & more \\\\", "<img src=x onerror=alert(1)>", "a\n\\end{table}", "=cmd()"]
    text = written(tmp_path, result({name: [1.0, 2.0] for name in names}))
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= OURS | PRINTED
    assert text.count(r"\end{table}") == 1 and r"\textbackslash{}input\{/etc/passwd\} & " in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(names)
    assert all(line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == 1 for line in body)
