"""The trust store against everything that might be put in its place, and the question that a person is asked."""

import json
import os
import stat
import threading
from types import SimpleNamespace

import pytest
from test_model_files import assembled, parts, tiny

from diffnb.documents import canonical_json
from diffnb.files import (
    CodeNotTrusted,
    ComponentSource,
    NotInteractive,
    TrustError,
    TrustStore,
    confirm,
    default_store,
    describe,
    digest_for,
    imports_of,
    load,
    save,
    settings_text,
)

TEXT = "class Flat:\n    def beta(self, t):\n        return 0 * t + 5\n"
FLAT = ComponentSource("schedule", "Flat", "NoiseSchedule", TEXT)
posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


@pytest.fixture
def store(tmp_path):
    """A store with one source in it, trusted for the sandbox."""
    store = TrustStore(tmp_path / "config" / "trust.json")
    store.add(FLAT)
    return store


def changed(**fields):
    """The source with another field."""
    return ComponentSource(**{**vars(FLAT), **fields})


def test_trust_is_for_a_text_and_a_mode(store):
    """What was confirmed, in the mode in which it was."""
    assert store.allows(FLAT, "sandbox") and not store.allows(FLAT, "inprocess")
    store.add(FLAT, "inprocess")
    assert store.allows(FLAT, "inprocess") and len(store.list()) == 2
    store.add(FLAT, "inprocess")
    assert len(store.list()) == 2


@pytest.mark.parametrize(
    "fields", [{"kind": "process"}, {"name": "Flat2"}, {"base": "VP"}, {"text": TEXT + "\n"}, {"text": TEXT.replace("5", "6")}, {"api": 2}]
)
def test_another_source_is_not_trusted(store, fields):
    """One byte in any field that decides what would run."""
    assert not store.allows(changed(**fields), "sandbox")


def test_fields_cannot_be_shifted_into_each_other():
    """The digest separates its fields: no text moves from one into the next."""
    a, b = ComponentSource("schedule", "AB", "C", "x"), ComponentSource("schedule", "A", "BC", "x")
    assert a.digest != b.digest and len(a.digest) == 64


@pytest.mark.parametrize("nonsense", [True, False, None, 1, "Flat", FLAT.digest, FLAT.digest[:8], {"digest": FLAT.digest}, object()])
def test_only_a_source_is_trusted(store, nonsense):
    """No yes, no name, no digest."""
    with pytest.raises(TypeError, match="ComponentSource"):
        store.add(nonsense)


@pytest.mark.parametrize("mode", [True, None, "", "all", "Sandbox", "builtin", "program"])
def test_modes(store, mode):
    """There are two."""
    for ask in (store.add, store.allows):
        with pytest.raises(ValueError, match="mode must be one of"):
            ask(FLAT, mode)


def link(path):
    """Put a link in its place."""
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def link_folder(path):
    """Put a link in the folder's place."""
    path.parent.rename(path.parent.with_suffix(".real"))
    path.parent.symlink_to(path.parent.with_suffix(".real"))


def fifo(path):
    """Put a pipe in its place: opening it must not hang."""
    path.unlink()
    os.mkfifo(path)


def edit(old, new):
    """Change the text of the file."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


def without_settings(path):
    """An entry as it was before trust covered settings."""
    entries = json.loads(path.read_text())["trusted"]
    path.write_text(json.dumps({"version": 2, "trusted": [{key: value for key, value in one.items() if key != "settings"} for one in entries]}))


CHANGES = {
    "file writable by all": lambda p: os.chmod(p, 0o606),
    "file writable by the group": lambda p: os.chmod(p, 0o660),
    "folder writable by all": lambda p: os.chmod(p.parent, 0o777),
    "folder writable by the group": lambda p: os.chmod(p.parent, 0o770),
    "a link": link,
    "a linked folder": link_folder,
    "a pipe": fifo,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "empty": lambda p: p.write_text(""),
    "not JSON": lambda p: p.write_text("{"),
    "not UTF-8": lambda p: p.write_bytes(b'{"\xff": 1}'),
    "deep": lambda p: p.write_text("[" * 200_000),
    "large": lambda p: p.write_bytes(b" " * (17 << 20)),
    "a list": lambda p: p.write_text("[]"),
    "true": lambda p: p.write_text("true"),
    "no entries": lambda p: p.write_text('{"version": 2}'),
    "another version": edit('"version": 2', '"version": 3'),
    "an earlier version": edit('"version": 2', '"version": 1'),
    "settings that are none": edit('"settings": ""', '"settings": {}'),
    "no settings": without_settings,
    "an entry of true": lambda p: p.write_text('{"version": 2, "trusted": [true]}'),
    "text without its digest": edit("+ 5", "+ 6"),
    "digest without its text": edit(FLAT.digest, "0" * 64),
    "a prefix as digest": edit(FLAT.digest, FLAT.digest[:8]),
    "another name": edit('"Flat"', '"Other"'),
    "a mode of its own": edit('"sandbox"', '"all"'),
    "both modes": edit('"sandbox"', '["sandbox", "inprocess"]'),
    "a field too many": edit('"mode"', '"trust": true, "mode"'),
    "a field too few": edit('"api": 1,', ""),
    "a type": edit('"api": 1', '"api": true'),
}


@posix
@pytest.mark.parametrize("name", CHANGES)
def test_a_store_that_is_not_to_be_believed(store, name):
    """One sentence, and no trust."""
    CHANGES[name](store.path)
    for ask in (store.list, lambda: store.allows(FLAT, "sandbox"), lambda: store.add(changed(name="New"))):
        with pytest.raises(TrustError):
            ask()


@posix
def test_file_is_private_and_replaced_whole(store, monkeypatch):
    """Mode 0600; a failure while writing leaves the old file and nothing beside it."""
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    before = store.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.add(changed(name="New"))
    assert store.path.read_bytes() == before
    assert {p.suffix for p in store.path.parent.iterdir()} == {".json", ".lock"}


def test_many_writers_lose_nothing(tmp_path):
    """Entries that are added at the same time are all there."""
    store = TrustStore(tmp_path / "trust.json")
    os.chmod(tmp_path, 0o700)
    threads = [threading.Thread(target=store.add, args=(changed(name=f"S{i}"),)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e.source.name for e in store.list()} == {f"S{i}" for i in range(12)}


def test_revoke(store):
    """By the whole digest or a clear beginning of it; in every mode; never by mistake."""
    store.add(FLAT, "inprocess")
    for wrong in ("", FLAT.digest[:7], "0" * 64, None, True):
        with pytest.raises(ValueError):
            store.revoke(wrong)
    assert len(store.list()) == 2
    assert len(store.revoke(FLAT.digest[:12].upper())) == 2 and store.list() == ()


@posix
def test_no_environment_variable_moves_the_store(monkeypatch, tmp_path):
    """Who can set variables cannot bring trust along."""
    for name in ("HOME", "XDG_CONFIG_HOME", "USERPROFILE", "DIFFNB_TRUST", "DIFFNB_CODE", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert not str(default_store()).startswith(str(tmp_path))


def test_no_terminal_no_question(tmp_path, monkeypatch):
    """Unless there is nothing to ask."""
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    store, told = TrustStore(tmp_path / "config" / "trust.json"), []
    monkeypatch.setattr("diffnb.files.trust.inspect", lambda path: type("Report", (), {"sources": {"a": FLAT}}))
    with pytest.raises(NotInteractive, match="no terminal"):
        confirm(tmp_path / "code.safetensors", store=store, show=told.append)
    monkeypatch.setattr("diffnb.files.trust.inspect", lambda path: type("Report", (), {"sources": {}}))
    assert confirm(tmp_path / "plain.safetensors", store=store, show=told.append) == [] and told[0].endswith("nothing to confirm")


@pytest.mark.parametrize("typed", ["", "y", "yes", "Y", "true", FLAT.digest[:7], FLAT.digest, FLAT.digest[1:9], "0" * 8])
def test_confirm_wants_eight_digits(tmp_path, monkeypatch, typed):
    """Nothing else confirms."""
    store = TrustStore(tmp_path / "config" / "trust.json")
    monkeypatch.setattr("diffnb.files.trust.inspect", lambda path: type("Report", (), {"sources": {"a": FLAT}}))
    shown = []
    assert confirm("x", store=store, ask=lambda question: typed, show=shown.append) == []
    assert not store.allows(FLAT, "sandbox") and "not confirmed" in shown[-1]
    assert len(confirm("x", store=store, ask=lambda question: f" {FLAT.digest[:8].upper()} ", show=shown.append)) == 1
    assert store.allows(FLAT, "sandbox") and not store.allows(FLAT, "inprocess")
    asked = []
    assert confirm("x", store=store, ask=asked.append, show=shown.append) == [] and not asked


def test_what_was_shown_is_what_is_trusted(tmp_path, monkeypatch):
    """A file that is exchanged while a person reads changes nothing."""
    store = TrustStore(tmp_path / "config" / "trust.json")
    report = type("Report", (), {"sources": {"a": FLAT}})
    monkeypatch.setattr("diffnb.files.trust.inspect", lambda path: report)

    def ask(question):
        report.sources["a"] = changed(text="import os")
        return FLAT.digest[:8]

    confirm("x", store=store, ask=ask, show=lambda text: None)
    assert store.allows(FLAT, "sandbox") and not store.allows(changed(text="import os"), "sandbox")


HIDDEN = {
    "escape": "\x1b[2J",
    "right to left": "\u202e",
    "isolate": "\u2066",
    "zero width": "\u200b",
    "bell": "\x07",
    "carriage return": "\r",
    "homoglyph": "\u043e",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_person_sees(name):
    """Every character that a terminal obeys or hides is shown by its number, in the text and in names."""
    character = HIDDEN[name]
    source = changed(text=TEXT + f"# {character}\nimport os\n", name=f"Flat{character}")
    text = describe(source, "sandbox", FLAT)
    assert not any(c in text for c in character if not (" " <= c <= "~"))
    assert all(" " <= c <= "~" or c == "\n" for c in text)
    assert source.digest in text and "imports:  os" in text and "+import os" in text


def test_imports_are_listed_from_the_tree():
    """In whatever spelling; and a source that is no Python imports nothing."""
    assert imports_of("import a.b as c, d\nfrom e import (f)\nfrom . import g\ndef h():\n    import i") == [".", "a.b", "d", "e", "i"]
    assert imports_of("def (") == [] and imports_of("x = " + "(" * 10_000) == [] and imports_of("\0") == []


def test_store_is_plain_json(store):
    """A person can read it."""
    found = json.loads(store.path.read_text())
    assert found["trusted"][0]["text"] == TEXT and found["trusted"][0]["digest"] == FLAT.digest


# settings


SETTINGS = [
    '{"command":"true"}',
    '{"command":"false"}',
    '{"command":"true","more":1}',
    '{"command":["true"]}',
    "{}",
    "null",
    '{"Command":"true"}',
    "",
]


def test_trust_in_this_program_is_for_settings_too(store):
    """Another value, another key, none at all: each is something that nobody has read."""
    store.add(FLAT, "inprocess", SETTINGS[0])
    assert [store.allows(FLAT, "inprocess", one) for one in SETTINGS] == [True] + [False] * (len(SETTINGS) - 1)
    assert all(store.allows(FLAT, "sandbox", one) for one in SETTINGS)
    store.add(FLAT, "inprocess", SETTINGS[1])
    assert [store.allows(FLAT, "inprocess", one) for one in SETTINGS[:3]] == [True, True, False]
    assert len({e.digest for e in store.list()}) == 3
    assert len(store.revoke(FLAT.digest)) == 3


def test_settings_and_source_cannot_be_shifted_into_each_other():
    a, b = (digest_for(changed(text=text), "inprocess", settings) for text, settings in (("ab", "c"), ("a", "bc")))
    assert a != b and digest_for(FLAT, "sandbox", "x") == FLAT.digest != digest_for(FLAT, "inprocess", "")


def test_what_settings_refer_to_is_covered():
    """A source or a program that is exchanged under the same ID makes other settings."""
    row = {
        "schedule": {"kind": "schedule", "component": "python:Flat-1", "settings": {"a": [1]}},
        "b": [{"component": "program:P-1", "settings": {}}],
    }
    one, other = (SimpleNamespace(text=text) for text in "ab")  # of a program its text alone counts
    texts = [
        settings_text(row, {"P-1": one}, {"Flat-1": FLAT}),
        settings_text(row, {"P-1": other}, {"Flat-1": FLAT}),
        settings_text(row, {"P-1": one}, {"Flat-1": changed(text="import os")}),
        settings_text(row, {}, {}),
        settings_text({**row, "b": []}, {"P-1": one}, {"Flat-1": FLAT}),
    ]
    assert len(set(texts)) == len(texts) and texts[0] == settings_text(row, {"P-1": one}, {"Flat-1": FLAT})


def test_all_settings_are_shown(tmp_path):
    """What is shown before trust is given is all that it covers: the last of a thousand, and what a terminal would hide."""
    hidden = {f"key{i}": "x" * 50 for i in range(1000)} | {"last": "rm -r ~\x1b[2K\u202e"}
    text = describe(FLAT, "inprocess", None, json.dumps(hidden))
    assert "rm -r ~\\u001b[2K\\u202e" in text and "key999" in text and digest_for(FLAT, "inprocess", json.dumps(hidden)) in text
    assert all(" " <= c <= "~" or c == "\n" for c in text)


MARKS = ComponentSource(
    "schedule",
    "Marks",
    "NoiseSchedule",
    "from diffnb.noise import Linear\n\n\nclass Marks(Linear):\n    def __init__(self, path):\n        super().__init__()\n"
    "        object.__setattr__(self, 'path', path)\n        open(path, 'w').close()\n",
)


def file_with(path, settings):
    """A model file whose schedule is code, with settings."""
    save(tiny(), path)
    header, body = parts(path)
    manifest = json.loads(header["__metadata__"]["diffnb.manifest"])
    for process in (manifest["process"], manifest["sampling"]["process"]):
        process["settings"]["schedule"] = {"kind": "schedule", "component": "python:Marks-1", "settings": settings}
    row = {"kind": "schedule", "name": "Marks", "base": "NoiseSchedule", "api": 1, "text": MARKS.text, "sha256": MARKS.digest}
    header["__metadata__"] |= {"diffnb.manifest": canonical_json(manifest), "diffnb.sources": canonical_json({"Marks-1": row})}
    path.write_bytes(assembled(header, body))


def test_settings_changed_under_a_trusted_source(tmp_path):
    """The attack, and that it is alive: with the settings that were read it runs, with others it does not."""
    store, shown = TrustStore(tmp_path / "config" / "trust.json"), []
    file_with(tmp_path / "m", {"path": str(tmp_path / "harmless")})
    confirmed = confirm(tmp_path / "m", "inprocess", store, lambda question: shown[-1].splitlines()[-1].split()[-1][:8], shown.append)
    assert len(confirmed) == 1 and str(tmp_path / "harmless") in shown[0]
    with pytest.warns(RuntimeWarning, match="all the rights"):
        load(tmp_path / "m", code="inprocess", trust=store)
    assert (tmp_path / "harmless").exists()
    file_with(tmp_path / "m", {"path": str(tmp_path / "canary")})
    with pytest.raises(CodeNotTrusted, match="with these settings has not been confirmed for code='inprocess'"):
        load(tmp_path / "m", code="inprocess", trust=store)
    assert not (tmp_path / "canary").exists()
