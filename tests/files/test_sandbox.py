"""The sandbox against a corpus of hostile sources: no mark outside, no change of the host, one of the documented errors, and the host goes on."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from attack_sources import ALIVE, ATTACKS, NOT_SHOWN, ROOT_ONLY
from commands import program

import diffnb
from diffnb.denoise import Gaussian
from diffnb.files import (
    ComponentBadResult,
    ComponentCrashed,
    ComponentError,
    ComponentProtocol,
    ComponentSource,
    ComponentTimeout,
    SandboxedSampler,
    SandboxedSchedule,
    SandboxedSDE,
    Worker,
    jail,
    sandboxed,
    unavailable,
)
from diffnb.noise import VP, Cosine, Linear

ROOT = str(Path(diffnb.__file__).parents[1])
pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no sandbox here: {unavailable()}")

GOOD = """
from dataclasses import dataclass
from diffnb.noise import NoiseSchedule

@dataclass(frozen=True)
class Straight(NoiseSchedule):
    low: float = 0.1
    high: float = 20.0

    def beta(self, t):
        return self.low + t * (self.high - self.low)

    def integral(self, t):
        return t * (self.low + t * ((self.high - self.low) / 2))
"""


def host_state():
    """What an attack must leave as it is."""
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.random.get_rng_state().sum().item(),
        torch.exp,
        dict(os.environ),
        os.getcwd(),
        sorted(name for name in sys.modules if name.startswith("component")),
        Linear().beta(torch.tensor(0.5)).item(),
    )


@pytest.fixture(scope="module")
def listener():
    """A port that notes who calls."""
    calls, server = [], socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                calls.append(server.accept()[1])
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    yield server.getsockname()[1], calls
    server.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name, tmp_path, listener):
    """No canary, no call, no leak, no change; an error of the four kinds, or a component that computes."""
    port, calls = listener
    canary, secret = tmp_path / "canary", tmp_path / "secret"
    secret.write_text("the secret of the host")
    text = ATTACKS[name].replace("CANARY", str(canary)).replace("SECRET", str(secret)).replace("PORT", str(port))
    source, before, shown = ComponentSource("schedule", "Bad", "NoiseSchedule", text), host_state(), ""
    t = torch.linspace(0, 1, 5)
    started = time.monotonic()
    try:
        made = SandboxedSchedule(source, {})
        made.worker.timeout = 0.5
        value = made.beta(t)
        assert value.shape == t.shape and bool((value >= 0).all())
        repr(made)
        made.worker.close()
    except (ComponentBadResult, ComponentCrashed, ComponentProtocol, ComponentTimeout) as error:
        shown = str(error)
    assert time.monotonic() - started < 15
    assert not canary.exists() and not calls
    assert "the secret" not in shown and all(c.isprintable() for c in shown)
    assert host_state() == before


LIVE = """
import atexit, copy, json, os, resource, signal, socket, sys, threading, time, warnings
import torch
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from attack_sources import ALIVE, ATTACKS
folder, names = sys.argv[2], json.loads(sys.argv[3])
sys.argv[:] = ["live"]
os.chdir(folder)
os.dup2(os.open("for descriptors", os.O_WRONLY | os.O_CREAT), 20)
there = socket.socket(socket.AF_UNIX)
try:
    there.bind(chr(0) + "x")
    there.listen()
except OSError:
    pass  # another test has it: the name is heard there


def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def attack(name, i):
    calls, server = [], socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: calls.append(server.accept()), daemon=True).start()
    free = port() if name == "torch: distributed" else server.getsockname()[1]
    secret, shown = os.path.abspath(f"secret{i}"), os.path.abspath(f"shown {i}")
    if "load_library" in name:
        import _ctypes

        secret = _ctypes.__file__
    elif name == "torch: torch.load":
        torch.save([1, 2, 3], secret)
    else:
        open(secret, "w").write("the secret of the host")
    text = ATTACKS[name].replace("CANARY", os.path.abspath(f"canary{i}")).replace("SECRET", secret).replace("PORT", str(free))
    sys.stdout = open(shown, "w")
    t, ended, space = torch.ones(5), "returned", {"__name__": "component"}

    def look():
        time.sleep(0.2)
        called = bool(calls)
        sys.stdout.flush()
        if eval(ALIVE.get(name, "False"), {**globals(), "t": t, "ended": ended, "shown": shown, "called": called}):
            os.rename(shown, f"{folder}/{i} alive")  # which needs no descriptor

    if ALIVE.get(name) == "called":  # nobody answers, so the call does not end
        threading.Thread(target=lambda: (time.sleep(3), look(), os._exit(0)), daemon=True).start()
    try:
        exec(compile(text, "x", "exec"), space)
        bad = space["Bad"]()
        repr(bad), getattr(bad, "beta_max", 0), copy.copy(bad), bad.beta(t)
        del bad, space["Bad"]
        if "atexit" in name:
            atexit._run_exitfuncs()
    except BaseException as error:
        ended = type(error).__name__
    look()


running = {}  # a few at a time: they wait more than they compute


def reap():
    parent, status = os.wait()
    i = running.pop(parent)
    if os.WIFSIGNALED(status):
        open(f"{i} alive", "w")


for i, name in names:
    if len(running) == 6:
        reap()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            try:
                attack(name, i)
            finally:
                os._exit(0)
        os.wait()
        os._exit(0)
    running[parent] = i
while running:
    reap()
"""


def test_corpus_is_live(tmp_path):
    """Without a sandbox the attacks succeed: what the tests above show is the jail's doing. Run in processes of their own, which they may harm."""
    reasons = {**NOT_SHOWN, **dict.fromkeys(ROOT_ONLY if os.geteuid() else (), "the kernel refuses others than root")}
    assert set(reasons) | set(ALIVE) <= set(ATTACKS)
    live = [name for name in ATTACKS if name.startswith(("walk", "torch", "class time", "host")) and name not in reasons]
    if not os.environ.get("DIFFNB_SLOW"):
        live.remove("torch: profiler")  # which takes as long as all the others
    before = os.path.exists("/dev/shm/x")
    arguments = [os.path.dirname(__file__), str(tmp_path), json.dumps(list(enumerate(live)))]
    done = subprocess.run([sys.executable, "-c", LIVE, *arguments], capture_output=True, text=True, timeout=300, env=os.environ | {"SOME": "thing"})
    if not before and os.path.exists("/dev/shm/x"):
        os.unlink("/dev/shm/x")
    left = {path.name for path in tmp_path.iterdir()}
    quiet = [name for i, name in enumerate(live) if not {f"canary{i}", f"{i} alive"} & left]
    assert not quiet, f"{quiet}: {done.stderr[-2000:]}"


def test_good_component_is_bit_equal():
    """The same numbers as the class would give here."""
    source = ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD)
    theirs, ours, t = sandboxed(source, {"low": 0.2}), Linear(0.2), torch.linspace(0, 1, 101)
    assert theirs.beta(t).equal(ours.beta(t)) and theirs.integral(t).equal(ours.integral(t))
    x = torch.tensor([0.3], dtype=torch.float64)
    assert torch.allclose(VP(theirs).diffusion(x), VP(ours).diffusion(x), rtol=1e-12)


WINGS = ("noise", "denoise", "samplers", "guidance")  # what a component is made of


def test_what_a_component_may_import_is_there_before_the_jail():
    """Every module of these wings; in the jail no file can be opened any more."""
    folders = [Path(diffnb.__file__).parent / wing for wing in WINGS]
    wanted = {f"diffnb.{folder.name}.{file.stem}" for folder in folders for file in folder.glob("*.py") if file.stem != "__init__"}
    said = subprocess.run([sys.executable, "-c", "import sys, diffnb.files.worker; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert len(wanted) > 12 and sorted(wanted - set(said.stdout.split())) == []


def test_a_component_imports_as_people_do():
    """From the wing, from a module, and by a path; inside the jail."""
    text = """
import diffnb.noise
import diffnb.samplers as s
from diffnb import denoise, guidance
from diffnb.core import expand
from diffnb.noise import Cosine
from diffnb.samplers.ode import Heun

class Mixed(diffnb.noise.NoiseSchedule):
    def beta(self, t):
        assert s.Heun is Heun and denoise.Gaussian and guidance.ClassifierFree and guidance.inverse.DDNM and s.checks
        return Cosine().beta(t)

    def integral(self, t):
        return Cosine().integral(t)
"""
    t = torch.linspace(0, 1, 11)
    assert sandboxed(ComponentSource("schedule", "Mixed", "NoiseSchedule", text), {}).beta(t).equal(Cosine().beta(t))


def test_gradient_is_not_silently_zero():
    """A second derivative, which is not known, is an error and not a zero."""
    theirs = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {})
    t = torch.tensor([0.25], requires_grad=True)
    assert torch.autograd.grad(theirs.integral(t).sum(), t)[0].item() == pytest.approx(theirs.beta(t.detach()).item())
    with pytest.raises(ComponentBadResult, match="not known"):
        torch.autograd.grad(theirs.beta(t).sum(), t)


def test_falling_integral_is_refused():
    """A beta that is negative somewhere between the times that are asked for."""
    text = GOOD.replace("return t * (self.low", "return -t * (self.low")
    with pytest.raises(ComponentBadResult, match="falls"):
        sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", text), {})


def test_ended_worker_stays_ended():
    """After a time-out there is one sentence, and no hang."""
    text = GOOD.replace("return self.low + t", "while bool(t[0] == 1): pass\n        return self.low + t")
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", text), {})
    made.worker.timeout = 0.3
    made.beta(torch.zeros(1))
    with pytest.raises(ComponentTimeout, match="0.3 seconds"):
        made.beta(torch.ones(1))
    with pytest.raises(ComponentCrashed, match="was ended before"):
        made.beta(torch.zeros(1))


FLOOD = """
from dataclasses import dataclass, replace
from diffnb.samplers import Sampler

class Flood(Sampler):
    def step(self, denoiser, state, t, s, noise):
        for _ in range(10**6):
            denoiser(state.x, t.time)
        return state
"""
LEVELS = """
from dataclasses import replace
from diffnb.samplers import Sampler

class Jump(Sampler):
    def step(self, denoiser, state, t, s, noise):
        p = denoiser(state.x, t.time)
        z = noise.normal(state.x.shape[1:], "step", state.step, state.x.dtype)
        return replace(state, x=s.alpha * p.x0 + s.sigma * z, x0=p.x0)
"""


def test_callback_flood():
    """A step may ask so many questions and no more."""
    made = SandboxedSampler(ComponentSource("sampler", "Flood", "Sampler", FLOOD), {})
    with pytest.raises(ComponentProtocol, match="256 questions"):
        made(Gaussian(0.4, 0.09).denoiser(VP()), shape=(2, 1), n_steps=3, seeds=0)


def test_sampler_draws_the_noise_of_its_seeds():
    """A stochastic step in the jail equals the same step here, bit for bit."""
    made = SandboxedSampler(ComponentSource("sampler", "Jump", "Sampler", LEVELS), {})
    space = {}
    exec(LEVELS, space)  # the test's own text
    denoiser = Gaussian(0.4, 0.09).denoiser(VP())
    ours, theirs = (s(denoiser, shape=(3, 1), n_steps=4, seeds=[1, 2, 3], dtype=torch.float64).x for s in (space["Jump"](), made))
    assert ours.equal(theirs)


def test_process_rates():
    """Rates are computed inside, and equal the closed form."""
    text = "from diffnb.noise import SDE\nclass Line(SDE):\n    t_max = 0.99\n"
    text += "    def alpha(self, t):\n        return 1 - t\n    def sigma(self, t):\n        return t * 1.0\n"
    made = SandboxedSDE(ComponentSource("process", "Line", "SDE", text), {})
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    alpha_rate, sigma_rate = made.rates(t)
    assert alpha_rate.tolist() == [-1.0] * 5 and sigma_rate.tolist() == [1.0] * 5


def test_denoiser_questions_are_checked():
    """Times outside the process and names outside the table do not reach the denoiser."""
    text = FLOOD.replace("for _ in range(10**6):\n            denoiser(state.x, t.time)", "denoiser.ask('denoiser', '__init__', state.x)")
    made = SandboxedSampler(ComponentSource("sampler", "Flood", "Sampler", text), {})
    with pytest.raises(ComponentProtocol, match="other than x0"):
        made(Gaussian(0.4, 0.09).denoiser(VP()), shape=(2, 1), n_steps=3, seeds=0)


def test_jail_that_does_not_hold_gets_no_source(monkeypatch):
    """The self-test fails closed: what the zygote says is believed only if it says ready."""
    monkeypatch.setattr("diffnb.files.master.Worker._receive", lambda self, deadline: {"failed": "the jail does not hold"})
    sent = []
    monkeypatch.setattr("diffnb.files.master.Worker._transmit", lambda self, message, deadline: sent.append(message))
    with pytest.raises(PermissionError, match="did not hold"):
        Worker(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {})
    assert not sent


OPEN_JAIL = """
import os, struct, sys
from diffnb.files import jail
jail.filter_program = lambda *_: struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)  # one instruction: allow
try:
    jail.enter(2**28, 10)
    said = "nothing was noticed"
except jail.JailError as error:
    said = str(error)
os.write(int(sys.argv[1]), said.encode())
"""


def test_a_jail_without_its_filter_says_what_is_open():
    """The self-test tries the doors themselves: a filter that lets everything pass is found out."""
    ours, theirs = os.pipe()  # what is in a jail may write to no file
    done = program(OPEN_JAIL, theirs)
    os.close(theirs)
    with os.fdopen(ours) as said:
        found = said.read()
    assert "the jail does not hold: it was still possible to" in found and "make a socket" in found, (found, done)


PROBES = {  # a door of the self-test, and the calls by which it opens, on x86_64 and aarch64
    "open a file": {"openat": (257, 56)},
    "make a socket": {"socket": (41, 198)},
    "make a pair of sockets": {"socketpair": (53, 199)},
    "start a process": {"clone": (56, 220), "wait4": (61, 260), "set_robust_list": (273, 99)},
    "signal itself": {"kill": (62, 129)},
    "execute a program": {"execve": (59, 221)},
    "list a folder": {"openat": (257, 56), "fstat": (5, 80), "newfstatat": (262, 79), "fcntl": (72, 25), "getdents64": (217, 61), "close": (3, 57)},
    "see another process": {"sched_getaffinity": ()},
    "read the clock of another process": {"clock_gettime": ()},
    "be traced": {"ptrace": (101, 117)},
}
ONE_OPEN = """
import json, os, platform, struct
from diffnb.files import jail
column, numbers, looked_into = ("x86_64", "aarch64").index(platform.machine()), dict(jail.SYSCALLS[platform.machine()]), jail._LOOKED_INTO
whole, doors, opens = jail.filter_program, jail.open_doors, jail._opens

def blind_to(call):  # a filter that no longer looks at the argument of this call
    def program(*given):
        steps = list(struct.iter_unpack("=HBBI", whole(*given)))
        passed = [(6, 0, 0, 0x7FFF0000) if before[0] == 0x15 and before[3] == numbers[call] else one for before, one in zip(steps, steps[1:])]
        return b"".join(struct.pack("=HBBI", *one) for one in (steps[0], *passed))
    return program

def tried():
    jail._opens = opens
    return doors()

def attempt(calls):
    for call, known in calls.items():
        if known:
            jail.SYSCALLS[platform.machine()][call] = known[column]
        else:
            jail.filter_program = blind_to(call)
    jail.landlock, jail.limit = lambda: None, lambda memory, seconds: None  # the other locks are tried on their own
    jail._opens, jail.open_doors = lambda door: False, tried
    try:
        jail.enter(2**28, 10)
        return "nothing was noticed"
    except jail.JailError as error:
        return str(error)

for name, calls in PROBES.items():
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.write(write, attempt(calls).encode())
        finally:
            os._exit(0)
    os.close(write)
    print(name, os.fdopen(read).read(), sep=": ", flush=True)
    os.wait()
"""


def test_each_probe_is_refused_by_the_filter_and_by_nothing_else():
    """With its calls on the list of what is allowed a door is open, and those that have other calls are not."""
    done = _, out, _ = program(f"PROBES = {PROBES!r}\n{ONE_OPEN}")
    said = dict(line.split(": ", 1) for line in out.splitlines())
    found = {name: set(text.removeprefix("the jail does not hold: it was still possible to ").split(", ")) for name, text in said.items()}
    lists = {"open a file", "list a folder"}  # both by the same call
    assert (
        {name: doors - (lists if name in lists else set()) for name, doors in found.items()} == {name: {name} - lists for name in PROBES}
        and "list a folder" in found["list a folder"]
        and "open a file" in found["open a file"]
    ), done


def test_every_probe_is_possible_without_a_jail():
    """Otherwise it would say nothing about the jail."""
    done = _, out, _ = program("from diffnb.files import jail; print(*jail.open_doors(), sep=', ')")
    assert set(out.strip().split(", ")) == set(PROBES), done


def test_landlock_is_tried_on_its_own():
    """Before the filter is there: a landlock that does nothing is found out."""
    code = "from diffnb.files import jail\njail.landlock = lambda: None\njail.enter(2**28, 10)"
    assert "landlock is on, but a folder could still be listed" in program(code)[2]


LOOKING = """
import ctypes, os, sys, time
from diffnb.files import jail
if len(sys.argv) > 2:
    jail.enter(2**28, 10)
n = 0
for p in range(1, 400):
    try:
        n += LOOK
    except OSError:
        pass
os.write(int(sys.argv[1]), str(n).encode())  # to a pipe, for there are no files in a jail
assert os.sched_getaffinity(0) and os.sched_getaffinity(os.getpid()) and time.process_time() and time.time() and time.monotonic()
"""
LOOKERS = {  # what another process is asked for
    "processes that may be seen": "p != os.getpid() and bool(os.sched_getaffinity(p))",
    "clocks of processes": "time.clock_gettime(~p << 3 | 2) >= 0",
    "sleep by such a clock": "p == 1 and ctypes.CDLL(None).clock_nanosleep(~p << 3 | 2, 0, (ctypes.c_long * 2)(0, 0), None) == 0",
}


@pytest.mark.parametrize("name", LOOKERS)
def test_nothing_is_seen_of_other_processes(name):
    """Alive without the jail, nothing with it; and a process may still ask about itself."""
    code = LOOKING.replace("LOOK", LOOKERS[name])
    read, write = os.pipe()
    ended, seen = [], []
    for how in ((), ("jailed",)):
        ended.append(program(code, write, *how))
        seen.append(int(os.read(read, 9)) if ended[-1][0] == 0 else None)
    os.close(read), os.close(write)
    assert seen[0] >= 1 and seen[1] == 0, ended


def test_a_frame_is_measured_before_it_is_read(monkeypatch):
    """What is announced as longer than a frame may be is not waited for."""
    worker = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {}).worker
    asked = []
    monkeypatch.setattr(worker, "_exactly", lambda n, deadline: asked.append(n) or (2**20 + 1).to_bytes(4, "little"))
    with pytest.raises(ComponentProtocol, match="announced a frame of 1,048,577 bytes"):
        worker._receive(time.monotonic() + 5)
    assert asked == [4]


TOOLS = """
import os, sys, time, json
def conversation():
    frame = sys._getframe()
    while "message" not in frame.f_locals or "self" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["self"]
"""
DRIPPING = "os.write(3, (10**6).to_bytes(4, 'little'))\n        while True: os.write(3, b' ')\n        return self.low + t"
DRIP = TOOLS + GOOD.replace("return self.low + t", DRIPPING, 1)


def test_the_deadline_holds_against_bytes_that_drip():
    """Each byte is in time, and all together never come."""
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", DRIP), {})
    made.worker.timeout = 0.2
    started = time.monotonic()
    with pytest.raises(ComponentTimeout, match="0.2 seconds"):
        made.beta(torch.zeros(1))
    assert time.monotonic() - started < 2


def test_no_byte_renews_the_deadline(monkeypatch):
    """The same with a clock that no busy machine disturbs: a byte each hundredth of a second."""
    worker = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {}).worker

    class Slow:
        def settimeout(self, seconds):
            assert seconds > 0

        def recv(self, n):
            time.sleep(0.01)
            return b" "

    monkeypatch.setattr(worker, "connection", Slow())
    started = time.monotonic()
    with pytest.raises(ComponentTimeout):
        worker._exactly(500, started + 0.2)
    assert time.monotonic() - started < 2


DEAF = TOOLS + GOOD.replace("return self.low + t", "conversation().receive = lambda: time.sleep(60)\n        return self.low + t")


def test_the_deadline_holds_against_a_worker_that_does_not_listen():
    """A frame larger than what the kernel keeps for a socket."""
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", DEAF), {})
    made.worker.timeout = 0.5
    made.beta(torch.zeros(1))
    started = time.monotonic()
    with pytest.raises(ComponentTimeout, match="did not listen within 0.5 seconds"):
        made.worker.call("beta", torch.zeros(1), "x" * 900_000)
    assert time.monotonic() - started < 2


ON_AND_ON = TOOLS + GOOD.replace(
    "return self.low + t",
    "conversation().tell('ok', self.low + t * (self.high - self.low))\n        while True: pass\n        return self.low + t",
)


def of_worker(made):
    """State of a worker's process, and the seconds that it has computed."""
    text = Path(f"/proc/self/fdinfo/{made.worker.handle}").read_text()
    pid = int(next(line for line in text.splitlines() if line.startswith("Pid:")).split()[1])
    facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return facts[0], (int(facts[11]) + int(facts[12])) / os.sysconf("SC_CLK_TCK"), pid


@pytest.mark.parametrize("text", [GOOD, ON_AND_ON], ids=["one that waits", "one that works on"])
def test_a_worker_computes_only_while_it_is_waited_for(text):
    """The answer is there, and then nothing more is computed; the next call finds that it does not answer."""
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", text), {})
    t = torch.linspace(0, 1, 5)
    assert made.beta(t).equal(Linear().beta(t))
    time.sleep(0.2)
    before = of_worker(made)
    time.sleep(0.5)
    after = of_worker(made)
    assert before[0] == after[0] == "T" and after[1] == before[1]
    made.worker.timeout = 0.5
    if text is GOOD:
        assert made.beta(t).equal(Linear().beta(t))
    else:
        with pytest.raises(ComponentTimeout):
            made.beta(t)
    made.worker.close()


def test_working_on_is_alive_where_nobody_stops_it(monkeypatch):
    """Without the rule the loop goes on: what the test above shows is its doing."""
    monkeypatch.setattr("diffnb.files.master.Worker._let", lambda self, what: None)
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", ON_AND_ON), {})
    made.beta(torch.zeros(1))
    before = of_worker(made)
    time.sleep(1)
    after = of_worker(made)
    made.worker.close()
    assert after[0] == "R" and after[1] > before[1]


def test_a_stopped_worker_ends_with_the_program_that_wanted_it():
    """Even if that is killed, and can tell nobody."""
    code = f"""
import os, sys, torch
sys.path[:0] = {[str(Path(__file__).parents[k]) for k in (0, 1)]}
from test_sandbox import GOOD, ComponentSource, of_worker, sandboxed
made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {{}})
print(of_worker(made)[2], flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid, until = int(done.stdout), time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


QUESTIONS = {  # what a step asks the denoiser, and whether it may
    "x, torch.tensor(0.5), {}": True,
    "x.double(), torch.tensor(0.5), {}": True,
    "x, torch.full((2,), 0.5), {}": True,
    "x, torch.tensor(0.5), {'label': torch.zeros(2)}": True,
    "x.repeat(1000, 1, 1, 1), torch.tensor(0.5), {}": False,
    "x[:1], torch.tensor(0.5), {}": False,
    "torch.zeros(2, 1, 1000, 1000), torch.tensor(0.5), {}": False,
    "torch.zeros(2, 1), torch.tensor(0.5), {}": False,
    "x[None], torch.tensor(0.5), {}": False,
    "x.long(), torch.tensor(0.5), {}": False,
    "x, torch.full((3,), 0.5), {}": False,
    "x, torch.full((2, 1, 3, 3), 0.5), {}": False,
    "x, 0.5, {}": False,
    "x, torch.tensor(0.5), {'label': torch.zeros(2, 100000)}": False,
    "x, torch.tensor(0.5), {'text': torch.zeros(2, 24)}": False,
    "x, torch.tensor(0.5), {'label': 'x'}": False,
    "x, torch.tensor(0.5), []": False,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_have_the_shape_of_the_state(question, monkeypatch):
    """Of samples, times and conditions; what may not be asked does not reach the denoiser."""
    own = f"x = state.x\n        p = type('P', (), {{'x0': denoiser.ask('denoiser', 'x0', {question}).to(x)}})"
    text = "import torch\n" + LEVELS.replace("p = denoiser(state.x, t.time)", own)
    made, reached = SandboxedSampler(ComponentSource("sampler", "Jump", "Sampler", text), {}), []
    denoiser = Gaussian([0.4] * 9, 0.09).denoiser(VP())
    ask = type(denoiser).x0
    monkeypatch.setattr(type(denoiser), "x0", lambda self, x, t, condition: reached.append(tuple(x.shape)) or ask(self, x, t, condition))
    run = dict(shape=(2, 1, 3, 3), n_steps=3, seeds=0)
    if "label" in question and QUESTIONS[question]:
        with pytest.raises(ComponentCrashed, match="an oracle takes no condition"):  # said by the denoiser, which it has reached
            made(denoiser, **run)
    elif QUESTIONS[question]:
        made(denoiser, **run)
    else:
        with pytest.raises(ComponentCrashed, match="ValueError: a (denoiser|condition)|TypeError"):
            made(denoiser, **run)
    assert set(reached) <= {(2, 1, 3, 3)} and bool(reached) == QUESTIONS[question]


def test_times_are_as_many_as_a_component_can_use():
    """A question about the process costs the host; the number of times in it is bounded."""
    text = "import torch\nclass Many:\n    def ask(self, sde, x, n):\n        return sde.time_of_half_log_snr(torch.zeros(n))[:1]\n"
    worker = Worker(ComponentSource("sampler", "Many", "Sampler", text), {})
    assert worker.call("ask", VP(), torch.zeros(3), 4096).shape == (1,)
    assert worker.call("ask", VP(), torch.zeros(5000), 5000).shape == (1,)
    for n in (4097, 8_000_000):
        started = time.monotonic()
        with pytest.raises(ComponentCrashed, match="times are more than a component can use"):
            worker.call("ask", VP(), torch.zeros(3), n)
        assert time.monotonic() - started < 2


def test_a_constructor_asks_no_denoiser():
    """It has been given no samples, so there is nothing to ask about."""
    text = "import torch\nclass Early:\n    def __init__(self, denoiser):\n        denoiser(torch.zeros(1, 1), 0.5)\n"
    with pytest.raises(ComponentCrashed, match="it was given none"):
        Worker(ComponentSource("guidance", "Early", "BaseDenoiser", text), {}, Gaussian(0.4, 0.09).denoiser(VP()))


def test_workers_end_with_their_owner():
    """No process is left over when a component is forgotten."""
    made = sandboxed(ComponentSource("schedule", "Straight", "NoiseSchedule", GOOD), {})
    connection = made.worker.connection
    made.worker.close()
    assert connection.fileno() == -1
    with pytest.raises(ComponentError):
        made.beta(torch.zeros(1))


ENDINGS = {
    "a zygote whose master has gone": """
import atexit, diffnb.files
from diffnb.files import master
diffnb.files.zygote = lambda fd: atexit.register(print, "went on")
exec(master._BOOT.format(paths=[], fd=0))
""",
    "a worker that comes back": """
import os, socket
from diffnb.files import worker
worker._child = lambda *given: None
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
print("forks", flush=True)
pid = os.getpid()
try:
    worker._fork(here, {"size": 0, "limits": [0, 0]}, [os.dup(2), os.dup(2)])
finally:
    print("went on" if os.getpid() != pid else "forked", flush=True)
os.wait()
""",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_nothing_goes_on_where_it_should_end(name):
    """Not by Python's own way out, which runs what was registered, and not as a second zygote."""
    done = subprocess.run([sys.executable, "-c", ENDINGS[name]], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": ROOT})
    assert "went on" not in done.stdout and not done.stderr, done.stdout + done.stderr


def test_no_name_from_outside_reaches_the_allowed_calls():
    """The list of system calls holds none that takes a path, an address or a process."""
    forbidden = {
        "open",
        "openat",
        "openat2",
        "connect",
        "socket",
        "bind",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "execve",
        "execveat",
        "kill",
        "tgkill",
        "ptrace",
    }
    forbidden |= {
        "ioctl",
        "prctl",
        "seccomp",
        "memfd_create",
        "sendmsg",
        "recvmsg",
        "process_vm_readv",
        "pidfd_open",
        "io_uring_setup",
        "bpf",
        "mount",
    }
    for numbers in jail.SYSCALLS.values():
        assert not forbidden & set(numbers) and len(numbers) == len(set(numbers.values()))
