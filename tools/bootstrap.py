"""Make or complete the project's virtual environment: ``python3 tools/bootstrap.py --venv .venv``.

Needs nothing but Python's standard library and network access to a package index. Installs the pinned versions of
``constraints.txt`` and this checkout in editable form. Cheap to run again: a finished environment carries a stamp, and
an interrupted installation continues. The syntax stays readable to Python 3.6, which then learns what it lacks.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 10)
GIGABYTE = 10**9
# Installed packages take 5.5 GB (torch brings the CUDA libraries), the wheels being unpacked 2.5 GB.
NEEDED_BYTES = 8 * GIGABYTE
# Once most of that is there, this much is still wanted for the rest and for the outputs of a run.
SPARE_BYTES = 1 * GIGABYTE
STAMP = "openvocab-prompt.stamp"

# Found in what pip wrote to standard error -> what to tell the user. First match wins: an unreachable index also
# makes pip claim that no version of a package exists.
PIP_FAILURES = (
    (
        ("No space left on device", "Disk quota exceeded"),
        "the disk is full; free about {missing} at {venv} and run the same command again, it continues",
    ),
    (
        (
            "Failed to establish a new connection",
            "Temporary failure in name resolution",
            "Name or service not known",
            "Connection refused",
            "Connection reset",
            "ConnectTimeout",
            "Read timed out",
            "Max retries exceeded",
            "Network is unreachable",
            "ProxyError",
            "Could not fetch URL",
        ),
        "the package index {index} cannot be reached; check the network, the proxy (https_proxy) or PIP_INDEX_URL "
        "and run the same command again, it continues",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError"),
        "the package index {index} shows a certificate that is not trusted; point PIP_CERT to your network's "
        "certificate file and run the same command again",
    ),
    (
        ("No matching distribution found",),
        "the package index {index} lacks a pinned package for this Python {python} on this platform; try Python 3.10 "
        "to 3.13 by PYTHON=/path/to/python, or see docs/INSTALL.md for installing without the pins",
    ),
    (
        ("Permission denied",),
        "no permission to write to {venv} or to pip's cache; choose another folder by VENV=/path",
    ),
)


class SetupError(Exception):
    """One line that says what is wrong with this machine and what to do about it."""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="folder of the environment")
    options = parser.parse_args(argv)
    try:
        check_python(sys.version_info)
        with one_at_a_time():
            prepare(os.path.abspath(options.venv))
    except SetupError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def one_at_a_time():
    """Wait while another ``make`` of this checkout installs."""
    import fcntl

    with open(os.path.abspath(__file__)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another installation in this checkout", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_python(version):
    """Raise unless this interpreter is new enough and able to make environments."""
    if tuple(version[:2]) < OLDEST:
        raise SetupError(
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, found {version[0]}.{version[1]} at {sys.executable}; "
            "install it or name one by PYTHON=/path/to/python"
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"this Python ({sys.executable}) lacks the module {missing[0]}; "
            f"on Debian or Ubuntu: apt-get install python{version[0]}.{version[1]}-venv"
        )


def prepare(venv):
    """Bring ``venv`` to the state that pyproject.toml and constraints.txt describe; does nothing if it is there."""
    stamp = os.path.join(venv, STAMP)
    wanted = fingerprint(ROOT)
    python = os.path.join(venv, "bin", "python")
    if read(stamp) == wanted and os.path.exists(python):
        return
    if os.path.isdir(venv) and os.listdir(venv) and not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
        raise SetupError(f"{venv} exists and is no virtual environment; choose another folder by VENV=/path")
    check_disk(venv)
    make_environment(venv, python)
    install(venv, python)
    with open(stamp + ".tmp", "w") as file:
        file.write(wanted)
    os.replace(stamp + ".tmp", stamp)


def fingerprint(root):
    """Changes with the requirements, the place of the checkout and its top-level packages (an editable install
    knows them by name)."""
    digest = hashlib.sha256(root.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(root, name), "rb") as file:
            digest.update(file.read())
    packages = [name for name in sorted(os.listdir(root)) if os.path.exists(os.path.join(root, name, "__init__.py"))]
    digest.update(" ".join(packages).encode())
    return digest.hexdigest()


def check_disk(venv):
    """Raise when the installation would fill the disk half-way."""
    needed = max(NEEDED_BYTES - size_of(venv), SPARE_BYTES)
    free = shutil.disk_usage(existing_parent(venv)).free
    if free < needed:
        raise SetupError(
            f"the disk of {existing_parent(venv)} has {in_gigabytes(free)} free, the environment needs "
            f"{in_gigabytes(needed)}; free some space or choose another disk by VENV=/path"
        )


def make_environment(venv, python):
    """Make the environment, or mend one whose making was interrupted."""
    if succeeds([python, "-c", f"import sys; sys.exit(sys.version_info >= {OLDEST})"]):
        raise SetupError(f"{venv} holds an older Python than {OLDEST[0]}.{OLDEST[1]}; delete it or give VENV=/path")
    if succeeds([python, "-c", "import pip"]):
        return
    print(f"making the environment {venv}", flush=True)
    result = subprocess.run([sys.executable, "-m", "venv", venv], capture_output=True, text=True)
    if result.returncode or not succeeds([python, "-c", "import pip"]):
        reasons = (result.stdout + result.stderr).strip().splitlines() or ["there is no pip in it"]
        raise SetupError(
            f"making the environment failed ({reasons[-1].strip()}); choose another folder by VENV=/path, "
            f"or delete {venv} and run the same command again"
        )


def install(venv, python):
    """Install the pinned packages and this checkout; pip's progress is shown, its complaints are explained."""
    print(f"installing packages into {venv}; the first time this downloads about 2.5 GB", flush=True)
    downloads = os.path.join(venv, "downloads")  # not /tmp, which is often a small memory disk
    shutil.rmtree(downloads, ignore_errors=True)
    os.makedirs(downloads)
    constraints = os.path.join(ROOT, "constraints.txt")
    environment = dict(os.environ, TMPDIR=downloads, PIP_DISABLE_PIP_VERSION_CHECK="1")
    environment.setdefault("PIP_RETRIES", "3")
    environment.pop("PYTHONPATH", None)
    command = [python, "-m", "pip", "install", "--no-warn-script-location", "-c", constraints, "-e", ROOT + "[dev]"]
    try:
        code, complaints = run_showing(command, environment)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)
    if code:
        raise SetupError(explain(complaints, venv))


def run_showing(command, environment):
    """Run ``command`` with its output shown; returns its exit code and the last lines of its standard error."""
    last = collections.deque(maxlen=200)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        for line in process.stderr:
            sys.stderr.write(line)
            last.append(line)
        return process.wait(), "".join(last)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def explain(complaints, venv):
    """One line for what pip wrote to standard error."""
    facts = {
        "venv": venv,
        "missing": in_gigabytes(max(NEEDED_BYTES - size_of(venv), SPARE_BYTES)),
        "index": index_host(os.environ.get("PIP_INDEX_URL")),
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
    }
    for signs, message in PIP_FAILURES:
        if any(sign in complaints for sign in signs):
            return message.format(**facts)
    errors = [line.strip() for line in complaints.splitlines() if line.strip().lower().startswith("error")]
    reason = errors[-1] if errors else "it gave no reason"
    return f"pip failed ({reason}); see its output above and run the same command again, it continues"


def index_host(url):
    """What to call the index in a message: without the path, the user name and the password."""
    if not url:
        return "of your pip configuration (the default one if there is none)"
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")


def succeeds(command):
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def existing_parent(path):
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def size_of(folder):
    """Bytes that the files below ``folder`` take; 0 when there is no such folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # deleted meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def in_gigabytes(number):
    return f"{number / GIGABYTE:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
