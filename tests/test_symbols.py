"""A symbol means the same on every page: what the notebook on symbols says holds for the formulas and names of all others."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi varpi rho varrho sigma tau upsilon phi varphi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
).split()


def name(path):
    """Name of a page, without the number that orders it."""
    return re.sub(r"^\d+\w?_", "", path.stem)


NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
SYMBOLS = next(path for path in NOTEBOOKS if name(path) == "symbols")
PAGES = [path for path in NOTEBOOKS if path != SYMBOLS]


def cells(path, kind):
    """Sources of the cells of a kind."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def formulas(text):
    """What stands between dollars, outside of code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return " ".join(re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", text, flags=re.DOTALL))


def letters(text):
    """Greek letters of the formulas in a text."""
    return set(re.findall(r"\\([A-Za-z]+)", formulas(text))) & set(GREEK)


def table():
    """Letters that all pages may use, and for each other one the pages that may."""
    everywhere, bound = set(), {}
    for text in cells(SYMBOLS, "markdown"):
        for row in re.findall(r"^\| (\$.*) \|$", text, flags=re.MULTILINE):
            columns = row.split(" | ")
            if "| pages |" in text:
                pages = {(SYMBOLS.parent / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", columns[-1])}
                bound |= {letter: pages for letter in letters(columns[0])}
            else:
                everywhere |= letters(columns[0])
    return everywhere, bound


EVERYWHERE, BOUND = table()


def test_the_table_is_read():
    """Both parts of it, and no letter is in both."""
    assert {"epsilon", "lambda", "kappa", "sigma"} <= EVERYWHERE and {"eta", "nu", "delta", "xi"} <= set(BOUND)
    assert not EVERYWHERE & set(BOUND)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_letters_of_a_page(path):
    """A Greek letter in a formula is in the table, and on a page where it means what the table says."""
    used = letters("\n\n".join(cells(path, "markdown")))
    assert sorted(letter for letter in used - EVERYWHERE if path.resolve() not in BOUND.get(letter, ())) == []


@pytest.mark.parametrize("letter", sorted(BOUND))
def test_pages_of_a_letter(letter):
    """The pages that the table names do use it."""
    assert [path.name for path in sorted(BOUND[letter]) if letter not in letters("\n\n".join(cells(path, "markdown")))] == []


@pytest.mark.parametrize(
    "found, allowed",
    [
        (r"(?<!\w)\\lambda\s*=\s*(\S+)", r"\\log|-\\infty"),  # half the log-SNR: no weight, no eigenvalue
        (r"\\eta\s*=\s*(\S+)", r"[01]\b"),  # a share
        (r"\\ell\s*=\s*(\S+)", r"\\lVert|\\\|"),  # a loss: no log-SNR
    ],
    ids=["lambda", "eta", "ell"],
)
def test_what_a_letter_is_set_to(found, allowed):
    """A formula that defines a letter gives it the one meaning that it has."""
    wrong = []
    for path in PAGES:
        for text in cells(path, "markdown"):
            wrong += [(path.name, value) for value in re.findall(found, formulas(text)) if not re.match(allowed, value)]
    assert wrong == []


OTHER_MEANINGS = {  # what would be written if a letter stood for something else than the table says
    "lambda, an eigenvalue": r"\\lambda_(?!\{?[stikn\d])|(?:\\sqrt\{?|diag\}?\(|\\geq? ?)\\lambda|\\lambda_\w+ \\geq?",
    "beta, a share that Adam keeps or a shift": r"\\beta_(?!\{?(?:[ijkT01]|\\max|\\text))|\\beta = \(",
    "epsilon, an error": r"(?<!\\hat)\\epsilon ?\^",
}


@pytest.mark.parametrize("pattern", OTHER_MEANINGS.values(), ids=OTHER_MEANINGS)
def test_no_formula_gives_a_letter_another_meaning(pattern):
    """An index says what a letter stands for: one of times or levels, or one of components; so does what is done with it."""
    assert {name(path): found for path in PAGES if (found := re.findall(pattern, formulas("\n\n".join(cells(path, "markdown")))))} == {}


def test_tau_is_integrated_over():
    """It is the variable of an integral or of a motion, and never a standard deviation: a page that uses it has a d tau."""
    texts = {name(path): formulas("\n\n".join(cells(path, "markdown"))) for path in PAGES}
    assert [page for page, text in texts.items() if r"\tau" in text and not re.search(r"(?:d|\\partial_?)\\tau", text)] == []


def test_half_the_log_snr_says_so_in_code():
    """No name of a Python file, a code cell or the prose is that of the log-SNR but means half of it."""
    texts = {path.name: "\n".join(cells(path, "code") + cells(path, "markdown")) for path in NOTEBOOKS}
    for folder in ("tests", "benchmarks"):
        texts |= {path.name: path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("**/*.py") if path.name != Path(__file__).name}
    pattern = re.compile(r"\w*(?<!half_)log_snr\w*|\w*(?<!Half)LogSNR\w*")
    assert [(where, found) for where, text in texts.items() for found in pattern.findall(text)] == []


def test_eta_is_a_setting_of_ddim_alone():
    """What other samplers call eta in papers has another name."""
    sources = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "diffnb").rglob("*.py")))
    classes = re.split(r"^(?=class )", sources, flags=re.MULTILINE)
    assert [re.match(r"class (\w+)", text)[1] for text in classes if re.search(r"^    eta: ", text, flags=re.MULTILINE)] == ["DDIM"]


def test_public_names_stand_for_one_thing():
    """An average of any length is no reconstruction, and the worker's types are not those of a file."""
    where = {}
    for path in sorted((ROOT / "diffnb").rglob("*.py")):
        for found in re.findall(r"^(?:def |class )?(reconstruct|DTYPES)\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            where.setdefault(found, []).append(path.stem)
    assert len(where["reconstruct"]) == 1 and "worker" not in where["DTYPES"]
