"""Hostile sources of a noise schedule: each tries to leave a mark outside, to change its host, or to use it up.

`ATTACKS[name]` is a source text with a class `Bad`; `CANARY` in it stands for the path of a file that must not come to be, `SECRET` for one whose
content must not
come back, `PORT` for a listener that must not be called. The corpus is used against the sandbox.
"""

import textwrap

HEAD = "import torch\nfrom diffnb.noise import NoiseSchedule\n"
MARK = "_o.system('touch CANARY')"


def in_call(body: str) -> str:
    """A class whose beta runs the body, then returns t."""
    return HEAD + "class Bad(NoiseSchedule):\n    def beta(self, t):\n" + textwrap.indent(body, " " * 8) + "\n        return t\n" + INTEGRAL


def in_class(top: str = "", header: str = "class Bad(NoiseSchedule):", body: str = "") -> str:
    """A class that runs something while it is made."""
    return f"{HEAD}{top}\n{header}\n{textwrap.indent(body, '    ')}\n    def beta(self, t):\n        return t\n{INTEGRAL}"


INTEGRAL = "    def integral(self, t):\n        return t * t / 2\n"

# ways to the os module from inside a function; each sets _o
WALKS = {
    "import": "import os as _o",
    "dunder import": "_o = __import__('os')",
    "builtins dict": "_o = __builtins__['__import__']('os') if isinstance(__builtins__, dict) else __builtins__.__import__('os')",
    "importlib": "import importlib\n_o = importlib.import_module('os')",
    "sys.modules": "import sys\n_o = sys.modules['os']",
    "subclasses": "s = ().__class__.__base__.__subclasses__()\n_o = [c for c in s if c.__name__ == '_wrap_close'][0].__init__.__globals__['sys'].modules['os']",  # noqa: E501
    "function globals": "_o = torch.save.__globals__['os']",
    "class globals": "_o = NoiseSchedule.beta.__globals__['torch'].os",
    "module loader": "_o = torch.__loader__.load_module('os') if False else torch.__spec__.loader.__class__.__init__.__globals__['_os']",
    "generator frame": "g = (x for x in [1])\n_o = g.gi_frame.f_builtins['__import__']('os')",
    "traceback frame": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    _o = e.__traceback__.tb_frame.f_builtins['__import__']('os')",
    "frames up": "import sys\nf = sys._getframe()\nwhile f.f_back:\n    f = f.f_back\n_o = f.f_builtins['__import__']('os')",
    "coroutine frame": "async def c():\n    pass\nk = c()\n_o = k.cr_frame.f_builtins['__import__']('os')\nk.close()",
    "except group": "try:\n    raise ExceptionGroup('', [ValueError()])\nexcept* ValueError as e:\n    f = e.__traceback__.tb_frame\n    _o = f.f_builtins['__import__']('os')",  # noqa: E501
    "format string": "import os as _o\n'{0.__class__.beta.__globals__}'.format(self)",
    "getattr by parts": "_o = getattr(torch, 'o' + 's')",
    "getattr of getattr": "_o = getattr(getattr(torch, '_' * 2 + 'dict' + '_' * 2)['o' + 's'], '__self__', torch.os)",
    "vars": "_o = vars(torch)['os']",
    "globals": "_o = globals()['torch'].os",
    "eval": "_o = eval('__import__(\"os\")')",
    "exec": "d = {}\nexec('import os', d)\n_o = d['os']",
    "compile": "d = {}\neval(compile('import os', 'x', 'exec'), d)\n_o = d['os']",
    "type": "_o = type('T', (), {'m': lambda s: __import__('os')})().m()",
    "lambda default": "_o = (lambda m=__import__('os'): m)()",
    "torch.os": "_o = torch.os",
    "torch.sys": "_o = torch.sys.modules['os']",
    "torch.builtins": "_o = torch.builtins.__import__('os')",
    "torch.importlib": "_o = torch.importlib.import_module('os')",
    "torch.ctypes": "torch.ctypes.CDLL(None).system(b'touch CANARY')\n_o = torch.os",
    "torch.hub": "_o = torch.hub.os",
    "torch.utils": "_o = torch.utils.data.dataloader.os",
    "torch.serialization": "_o = torch.serialization.os",
    "torch.multiprocessing": "_o = torch.multiprocessing.reductions.os",
    "torch.storage": "_o = torch.storage.io.open.__self__.__loader__.load_module('posix') if False else torch.os",
    "NFKC": "_o = __ｉmport__('os')",
    "homoglyph": "оs = __import__('os')\n_o = оs",
    "bidi": "_o = __import__('os')  # \u202e )'math'(__tropmi__ = o_ \u2066",
    "shadowed torch": "class torch:\n    import os\n_o = torch.os",
    "posix": "import posix as _o",
    "subprocess": "import subprocess\nsubprocess.run(['touch', 'CANARY'])\nimport os as _o",
    "pty": "import pty\n_o = pty.os",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=open, args=('CANARY', 'w')).start()\nimport os as _o",
    "asyncio": "import asyncio\n_o = asyncio.base_events.os",
    "shutil": "import shutil\n_o = shutil.os",
    "codecs": "import codecs\ncodecs.open('CANARY', 'w')\nimport os as _o",
    "io": "import io\nio.open('CANARY', 'w')\nimport os as _o",
    "pathlib": "import pathlib\npathlib.Path('CANARY').write_text('x')\nimport os as _o",
    "tempfile": "import tempfile\ntempfile.mkdtemp()\nimport os as _o",
}

# doors of torch itself
DOORS = {
    "torch.save": "torch.save(t, 'CANARY')",
    "torch.load": "t = t + len(torch.load('SECRET', weights_only=False))",
    "torch.jit.save": "torch.jit.save(torch.jit.script(torch.nn.Identity()), 'CANARY')",
    "torch.hub.download": "torch.hub.download_url_to_file('http://127.0.0.1:PORT/x', 'CANARY')",
    "torch.from_file": "t = t + torch.from_file('CANARY', shared=True, size=4)[0]",
    "torch.ops.load_library": "torch.ops.load_library('SECRET')",
    "torch.classes.load_library": "torch.classes.load_library('SECRET')",
    "storage from_file": "torch.UntypedStorage.from_file('CANARY', True, 64)",
    "share_memory": "t.share_memory_()\n1 / 0",
    "numpy tofile": "t.numpy().tofile('CANARY')",
    "numpy save": "import numpy\nnumpy.save(open('CANARY', 'wb'), t.numpy())",
    "profiler": "import torch.profiler\nwith torch.profiler.profile() as p:\n    pass\np.export_chrome_trace('CANARY')",
    "safetensors": "import safetensors.torch\nsafetensors.torch.save_file({'t': t}, 'CANARY')",
    "inductor": "torch.compile(lambda x: x + 1)(t)\n1 / 0",
    "cpp extension": "from torch.utils import cpp_extension\ncpp_extension.load('x', ['SECRET'])",
    "distributed": "torch.distributed.init_process_group('gloo', 'tcp://127.0.0.1:PORT', rank=0, world_size=1)\n1 / 0",
    "tensorboard": "from torch.utils.tensorboard import SummaryWriter\nSummaryWriter('CANARY')",
}

# what runs while a class is made
CLASS_TIME = {
    "class body": in_class(body="import os\nos.system('touch CANARY')"),
    "module level": in_class(top="import os\nos.system('touch CANARY')"),
    "default argument": in_class(body="def f(self, x=__import__('os').system('touch CANARY')):\n    pass"),
    "annotation": in_class(body="def f(self, x: __import__('os').system('touch CANARY')):\n    pass"),
    "class annotation": in_class(body="x: __import__('os').system('touch CANARY') = 1"),
    "decorator": in_class(top="def d(c):\n    __import__('os').system('touch CANARY')\n    return c", header="@d\nclass Bad(NoiseSchedule):"),
    "metaclass": in_class(
        top="class M(type):\n    def __new__(m, *a):\n        __import__('os').system('touch CANARY')\n        return type.__new__(m, *a)",
        header="class Bad(NoiseSchedule, metaclass=M):",
    ),
    "init_subclass": in_class(
        top="class B(NoiseSchedule):\n    def __init_subclass__(c):\n        __import__('os').system('touch CANARY')", header="class Bad(B):"
    ),
    "set_name": in_class(top="class D:\n    def __set_name__(self, o, n):\n        __import__('os').system('touch CANARY')", body="x = D()"),
    "computed base": in_class(top="def base():\n    __import__('os').system('touch CANARY')\n    return NoiseSchedule", header="class Bad(base()):"),
    "class_getitem": in_class(
        top="class G:\n    def __class_getitem__(c, k):\n        __import__('os').system('touch CANARY')\n        return NoiseSchedule",
        header="class Bad(G[0]):",
    ),
    "mro_entries": in_class(
        top="class E:\n    def __mro_entries__(self, b):\n        __import__('os').system('touch CANARY')\n        return (NoiseSchedule,)",
        header="class Bad(E()):",
    ),
    "repr": in_class(body="def __repr__(self):\n    __import__('os').system('touch CANARY')\n    return 'Bad'"),
    "del": in_class(body="def __del__(self):\n    __import__('os').system('touch CANARY')"),
    "reduce": in_class(body="def __reduce__(self):\n    return __import__('os').system, ('touch CANARY',)"),
    "init": in_class(body="def __init__(self):\n    __import__('os').system('touch CANARY')"),
    "new": in_class(body="def __new__(c):\n    __import__('os').system('touch CANARY')\n    return object.__new__(c)"),
    "getattribute": in_class(
        body="def __getattribute__(self, n):\n    __import__('os').system('touch CANARY')\n    return object.__getattribute__(self, n)"
    ),
    "property": in_class(body="@property\ndef beta_max(self):\n    return __import__('os').system('touch CANARY')"),
    "atexit": in_class(top="import atexit, os\natexit.register(os.system, 'touch CANARY')"),
    "thread": in_class(top="import threading, os\nthreading.Thread(target=os.system, args=('touch CANARY',)).start()"),
}

# the host's state, its processes and its secrets
HOST = {
    "default dtype": "torch.set_default_dtype(torch.float16)\n1 / 0",
    "seed": "torch.manual_seed(1)\n1 / 0",
    "threads": "torch.set_num_threads(7)\n1 / 0",
    "patched library": "torch.exp = None\nNoiseSchedule.beta = None\n1 / 0",
    "environment": "import os\nos.environ['X_CANARY'] = '1'\n1 / 0",
    "read the environment": "import os\nassert dict(os.environ) == {}, dict(os.environ)\n1 / 0",
    "signals": "import signal, os\nos.kill(os.getppid(), signal.SIGKILL)",
    "kill all": "import os\nos.kill(-1, 9)",
    "proc mem": "open('/proc/self/mem', 'r+b')",
    "proc parent": "import os\nopen(f'/proc/{os.getppid()}/environ')",
    "ptrace": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) < 0\n1 / 0",
    "process_vm_readv": "import ctypes\nassert ctypes.CDLL(None).process_vm_readv(1, 0, 0, 0, 0, 0) < 0\n1 / 0",
    "working folder": "import os\nos.chdir('/')",
    "secret file": "assert open('SECRET').read() == ''",
    "list a folder": "import os\nos.listdir('/')",
    "stat a file": "import os\nos.stat('SECRET')",
    "connect": "import socket\nsocket.socket().connect(('127.0.0.1', PORT))",
    "datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "abstract socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0x')",
    "look a name up": "import socket\nsocket.getaddrinfo('localhost', PORT)",
    "urllib": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT/')",
    "inherited descriptors": "import os\nfor d in range(4, 64):\n    try:\n        os.write(d, b'x')\n        open('CANARY', 'w')\n    except OSError:\n        pass\n1 / 0",  # noqa: E501
    "shared memory": "from multiprocessing import shared_memory\nshared_memory.SharedMemory('x', True, 64)",
    "memfd": "import os\nos.memfd_create('x')",
    "setuid": "import os\nos.setuid(0)",
    "unshare": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) < 0\n1 / 0",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(0, 0, 0, 0, 0) < 0\n1 / 0",
    "io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, 0) < 0\n1 / 0",
    "bpf": "import ctypes\nassert ctypes.CDLL(None).syscall(321, 0, 0, 0) < 0\n1 / 0",
    "userfaultfd": "import ctypes\nassert ctypes.CDLL(None).syscall(323, 0) < 0\n1 / 0",
    "executable memory": "import mmap\nmmap.mmap(-1, 4096, prot=7)",
    "raise the limits": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))",
    "terminal": "import os, fcntl, termios\nfcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "stdout": "import sys\nprint('\\x1b[2J')\nsys.stdout.write('x')\n1 / 0",
}

# use it up, or break it
RESOURCES = {
    "loop": "while True:\n    pass",
    "recursion": "def f():\n    return f()\nf()",
    "C recursion": "x = []\nfor _ in range(10**6):\n    x = [x]\nrepr(x)",
    "huge tensor": "torch.zeros(1 << 36)",
    "huge broadcast": "(torch.zeros(1 << 17, 1) + torch.zeros(1, 1 << 17)).sum()",
    "list growth": "x = [0]\nwhile True:\n    x = x + x",
    "integer power": "x = 9 ** 9 ** 9",
    "string": "x = 'x' * (1 << 40)",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "threads bomb": "import threading, time\nfor _ in range(10**4):\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "native hang": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "sleep": "import time\ntime.sleep(60)",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "as_strided": "torch.as_strided(t, (1 << 20,), (1 << 20,)).sum()",
    "abort": "import os\nos.abort()",
    "exit": "import os\nos._exit(0)",
    "system exit": "raise SystemExit",
    "keyboard interrupt": "raise KeyboardInterrupt",
    "deep expression": "eval('(' * 10**5)",
    "error that breaks str": "class E(Exception):\n    def __str__(self):\n        1 / 0\nraise E",
    "long error": "raise ValueError('x' * 10**8)",
}

# results that are none
RESULTS = {
    "NaN": "return t * float('nan')",
    "infinite": "return t / 0",
    "negative": "return t - 2",
    "another shape": "return t[:1]",
    "another type": "return t.double()",
    "half": "return t.half()",
    "none": "return None",
    "text": "return 'beta'",
    "number": "return 1.0",
    "list": "return [t]",
    "function": "return print",
    "complex": "return t + 1j",
    "sparse": "return t.to_sparse()",
    "quantized": "return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)",
    "subclass": "return torch.nn.Parameter(t[:1])",
    "huge": "return torch.zeros(1 << 26)",
    "uninitialised": "return torch.empty(1 << 20)",
    "meta": "return t.to('meta')",
    "deep list": "x = t\nfor _ in range(100):\n    x = [x]\nreturn x",
    "cyclic list": "x = []\nx.append(x)\nreturn x",
    "big number": "return 10 ** 400",
}

# the socket in a stranger's hands: bytes instead of an answer
PROTOCOL = {
    "four gigabytes": "b'\\xff\\xff\\xff\\xff'",
    "one over the limit": "(1 << 20 | 1).to_bytes(4, 'little') + b'x' * 100",
    "not JSON": "frame(b'hello')",
    "not UTF-8": "frame(b'\\xff\\xfe')",
    "deep JSON": "frame(b'[' * 100000)",
    "deep in an object": "frame(b'{\"ok\":' + b'[' * 900 + b']' * 900 + b'}')",
    "a list": "frame(b'[1]')",
    "a number": "frame(b'1')",
    "NaN": "frame(b'{\"ok\":NaN}')",
    "long integer": "frame(b'{\"ok\":' + b'9' * 5000 + b'}')",
    "empty object": "frame(b'{}')",
    "unknown word": "frame(b'{\"do\":1}')",
    "two words": 'frame(b\'{"ok":1,"ask":1}\')',
    "unknown object": 'frame(b\'{"ok":{"$":"os.system"}}\')',
    "no kind": "frame(b'{\"ok\":{}}')",
    "kind is a list": 'frame(b\'{"ok":{"$":[]}}\')',
    "tensor of nothing": 'frame(b\'{"ok":{"$":"tensor"}}\')',
    "tensor outside": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[5],"offset":33554432}}\')',
    "tensor before": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[5],"offset":-64}}\')',
    "tensor too large": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[1099511627775],"offset":0}}\')',
    "product overflow": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[4294967296,4294967296],"offset":0}}\')',
    "bad dtype": 'frame(b\'{"ok":{"$":"tensor","dtype":"object","shape":[5],"offset":0}}\')',
    "dtype is an object": 'frame(b\'{"ok":{"$":"tensor","dtype":{},"shape":[5],"offset":0}}\')',
    "negative shape": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[-5],"offset":0}}\')',
    "float shape": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[5.0],"offset":0}}\')',
    "many dimensions": 'frame(b\'{"ok":{"$":"tensor","dtype":"float32","shape":[1,1,1,1,1,1,1,1,1],"offset":0}}\')',
    "a question about nothing": 'frame(b\'{"ask":["sde","alpha",[1]]}\')',
    "a question for a name": 'frame(b\'{"ask":["denoiser","__class__",[1]]}\')',
    "a question that is none": "frame(b'{\"ask\":1}')",
    "an odd report": "frame(b'{\"raised\":1}')",
    "a report of escape codes": 'frame(b\'{"raised":["\\\\u001b[2J","\\\\u202e",1]}\')',
    "a state": 'frame(b\'{"ok":{"$":"state","x":1,"step":0,"x0":null,"history":[]}}\')',
}
FRAME = "def frame(b):\n    return len(b).to_bytes(4, 'little') + b\nimport os\nos.write(3, {bytes})\nimport time\ntime.sleep(60)"

ATTACKS = {
    **{f"walk: {name}": in_call(f"{body}\n{MARK}") for name, body in WALKS.items()},
    **{f"torch: {name}": in_call(body) for name, body in DOORS.items()},
    **{f"class time: {name}": source for name, source in CLASS_TIME.items()},
    **{f"host: {name}": in_call(body) for name, body in HOST.items()},
    **{f"resources: {name}": in_call(body) for name, body in RESOURCES.items()},
    **{f"result: {name}": in_call(body) for name, body in RESULTS.items()},
    **{f"protocol: {name}": in_call(FRAME.replace("{bytes}", body)) for name, body in PROTOCOL.items()},
}

# What shows, in a process without a jail, that an attack has done what it tries; where nothing stands here, a file at CANARY has come to be.
# `ended` is how the call ended: "returned", or the name of an exception; many attacks end with 1 / 0, so that their result is none.
THROUGH = "ended in ('returned', 'ZeroDivisionError')"
ALIVE = {
    "torch: torch.load": THROUGH,
    "torch: torch.hub.download": "called",
    "torch: torch.ops.load_library": THROUGH,
    "torch: torch.classes.load_library": THROUGH,
    "torch: share_memory": "t.is_shared()",
    "torch: distributed": "torch.distributed.is_initialized()",
    "host: default dtype": "torch.get_default_dtype() == torch.float16",
    "host: seed": "torch.initial_seed() == 1",
    "host: threads": "torch.get_num_threads() == 7",
    "host: patched library": "torch.exp is None",
    "host: environment": "any(name.startswith('X_') and value == '1' for name, value in os.environ.items())",
    "host: read the environment": "ended == 'AssertionError'",
    "host: signals": "False",  # who is killed sees nothing any more; the process that waits for it does
    "host: proc mem": THROUGH,
    "host: proc parent": THROUGH,
    "host: process_vm_readv": "ended == 'AssertionError'",
    "host: working folder": "os.getcwd() == '/'",
    "host: secret file": "ended == 'AssertionError'",
    "host: list a folder": THROUGH,
    "host: stat a file": THROUGH,
    "host: connect": "called",
    "host: datagram": THROUGH,
    "host: abstract socket": THROUGH,
    "host: look a name up": THROUGH,
    "host: urllib": "called",
    "host: shared memory": THROUGH,
    "host: memfd": THROUGH,
    "host: setuid": THROUGH,
    "host: executable memory": THROUGH,
    "host: raise the limits": "resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 9",
    "host: stdout": "'\\x1b[2J' in open(shown).read()",
}
# What is not shown alive, and why
NOT_SHOWN = {
    "host: kill all": "it would end every process of whoever runs the tests",
    "host: ptrace": "it would stop process 1, which other programs need",
    "host: unshare": "containers refuse it as well",
    "host: mount": "without arguments, which the kernel refuses as well",
    "host: io_uring": "without arguments, which the kernel refuses as well",
    "host: bpf": "without arguments, which the kernel refuses as well",
    "host: userfaultfd": "only some kernels let it be made",
    "host: terminal": "it needs a terminal, and a kernel that still lets programs type into it",
    "torch: inductor": "it needs a compiler of C++",
    "torch: cpp extension": "it needs a compiler of C++",
    "torch: tensorboard": "it needs the package tensorboard",
}
ROOT_ONLY = ("host: setuid", "host: process_vm_readv")  # the kernel refuses others than root
