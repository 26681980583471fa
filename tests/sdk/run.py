#!/usr/bin/env python3
"""Runs the official SDKs against the mock provider, direct and through the proxy, and compares.

Standard library only: this script makes the environments in which the SDKs live. It starts the mock provider and the proxy,
makes a project and a token over the management API, hands their places to pytest and `node --test` in the environment, stops
what it started and exits with 0 only if both runners did.

    run.py                  everything
    run.py --direct-only    only the direct halves: does the mock answer as the SDKs expect?
    run.py --only python    one language
    run.py -k NAME          the tests whose name holds NAME

`LLM_PROXY_BIN_DIR` (default `target/debug`) holds the binaries; `LLM_PROXY_CACHE_DIR` (default `tests/sdk/.venv`) keeps the
installed SDKs, one folder for each content of the lock files.
"""

import argparse
import hashlib
import json
import os
import pathlib
import queue
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BIN_DIR = ROOT / os.environ.get("LLM_PROXY_BIN_DIR", "target/debug")
CACHE_DIR = pathlib.Path(os.environ.get("LLM_PROXY_CACHE_DIR") or HERE / ".venv").resolve()

START_SECONDS = 20
RUNNER_SECONDS = 600
PROVIDER_KEYS = {
    "openai": "sk-mock-openai",
    "anthropic": "sk-mock-anthropic",
    "gemini": "mock-gemini",
    "azure": "mock-azure",
}


class Failed(Exception):
    """One line that tells a person what to do; no traceback helps with these."""


# --- the SDKs ---------------------------------------------------------------------------------------------------------


def python_with_sdks():
    """The interpreter of a virtual environment that holds exactly `requirements.txt`."""
    requirements = HERE / "requirements.txt"
    venv = CACHE_DIR / f"python-{digest(requirements, extra=sys.version)}"

    def install():
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-r", requirements], check=True)

    once(venv, "the Python SDKs", install)
    return venv / "bin/python"


def node_with_sdks():
    """A folder whose `node_modules` is exactly `package-lock.json`."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Failed("node and npm are needed for the Node SDKs (node 20 or later), or choose --only python")
    lock = HERE / "node/package-lock.json"
    folder = CACHE_DIR / f"node-{digest(lock)}"

    def install():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder)
        subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder, check=True)

    once(folder, "the Node SDKs", install)
    return folder


def once(folder, what, install):
    """Installs unless the stamp, written last, says that an earlier run came to the end of it."""
    stamp = folder / "installed"
    if stamp.exists():
        return
    print(f"installing {what} into {folder}", flush=True)
    try:
        install()
    except subprocess.CalledProcessError as failure:
        raise Failed(f"installing {what} failed: {failure}") from None
    stamp.touch()


def digest(path, extra=""):
    return hashlib.sha256(path.read_bytes() + extra.encode()).hexdigest()[:16]


# --- the processes under test -----------------------------------------------------------------------------------------


class Process:
    """A child that is stopped by its own id, with its output kept for the case that something fails."""

    def __init__(self, name, arguments, log, env=None):
        if not pathlib.Path(arguments[0]).exists():
            raise Failed(f"{arguments[0]} is missing: cargo build --bins, or set LLM_PROXY_BIN_DIR")
        self.name, self.log = name, log
        self.lines = queue.Queue()
        self.child = subprocess.Popen(
            [str(argument) for argument in arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with open(self.log, "w", encoding="utf-8") as log:
            for line in self.child.stdout:
                log.write(line)
                log.flush()
                self.lines.put(line)
        self.lines.put(None)

    def wait_for_line(self, pattern):
        """The first group of `pattern` in the first line of output that matches."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name} did not say {pattern!r} within {START_SECONDS} s{self.tail()}") from None
            if line is None:
                raise Failed(f"{self.name} ended with {self.child.wait()}{self.tail()}")
            if found := re.search(pattern, line):
                return found.group(1)

    def wait_for_url(self, url):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.child.poll() is not None:
                raise Failed(f"{self.name} ended with {self.child.returncode}{self.tail()}")
            try:
                with OPENER.open(url, timeout=2):
                    return
            except OSError:
                time.sleep(0.05)
        raise Failed(f"{self.name} did not answer {url} within {START_SECONDS} s{self.tail()}")

    def tail(self, lines=25):
        text = pathlib.Path(self.log).read_text(encoding="utf-8", errors="replace") if pathlib.Path(self.log).exists() else ""
        return "".join(f"\n  {self.name}: {line}" for line in text.splitlines()[-lines:])

    def stop(self):
        """Ends the child; false when it had died before or had to be killed."""
        died = self.child.poll() is not None
        if not died:
            self.child.terminate()
        try:
            self.child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            died = True
        self.reader.join(timeout=5)
        return not died


# Loopback only: an HTTP_PROXY of the machine must not see these requests.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def start_mock(folder):
    mock = Process("mock", [BIN_DIR / "llm-proxy-mock", "--listen", "127.0.0.1:0"], folder / "mock.log", child_env())
    try:
        return mock, mock.wait_for_line(r"mock provider listening on (http://\S+)").rstrip("/")
    except Failed:
        mock.stop()
        raise


def start_proxy(folder, mock_url, places):
    """Starts the proxy with the four APIs pointed at the mock, each base URL written the way its SDK's users write it."""
    config = folder / "llm-proxy.yaml"
    config.write_text(
        "apis:\n"
        f"  openai:\n    base_url: {mock_url}/v1\n"
        f"  anthropic:\n    base_url: {mock_url}\n"
        f"  gemini:\n    base_url: {mock_url}\n"
        f"  azure:\n    base_url: {mock_url}\n",
        encoding="utf-8",
    )
    data, admin = free_ports(2)
    management_token = secrets.token_urlsafe(32)
    env = child_env(
        CONFIG=config,
        DATA_DIR=folder / "data",
        LISTEN_ADDR=f"127.0.0.1:{data}",
        ADMIN_LISTEN_ADDR=f"127.0.0.1:{admin}",
        MANAGEMENT_TOKEN=management_token,
    )
    proxy = Process("proxy", [BIN_DIR / "llm-proxy", "server"], folder / "proxy.log", env)
    places |= {
        "PROXY_URL": f"http://127.0.0.1:{data}",
        "ADMIN_URL": f"http://127.0.0.1:{admin}",
        "MANAGEMENT_TOKEN": management_token,
    }
    try:
        proxy.wait_for_url(f"{places['ADMIN_URL']}/health/ready")
        project = manage(
            places,
            "projects",
            {"name": "sdk tests", "provider_keys": [{"api": api, "key": key} for api, key in PROVIDER_KEYS.items()]},
        )
        token = manage(places, "tokens", {"project_id": project["id"], "duration_minutes": 60})
    except Failed:
        proxy.stop()
        raise
    places |= {"PROXY_TOKEN": token["token"], "PROJECT_ID": project["id"]}
    return proxy


def manage(places, resource, body):
    request = urllib.request.Request(
        f"{places['ADMIN_URL']}/manage/{resource}",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {places['MANAGEMENT_TOKEN']}"},
    )
    try:
        with OPENER.open(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refusal:
        raise Failed(f"POST /manage/{resource}: {refusal.code} {refusal.read().decode(errors='replace')}") from None


def free_ports(count):
    """Ports that were free a moment ago; all are held until the last one is chosen, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def child_env(**settings):
    """This environment without what would steer an SDK, the proxy or their connections behind the tests' back."""
    steering = re.compile(
        r"^(OPENAI|AZURE_OPENAI|ANTHROPIC|GOOGLE|GEMINI|LANGCHAIN|LANGSMITH|AI_GATEWAY)_|^(https?|all)_proxy$"
        r"|^(CONFIG|LISTEN_ADDR|ADMIN_LISTEN_ADDR|DATA_DIR|DATABASE_URL|MANAGEMENT_TOKEN|ROOT_KEY|REDIS_URL"
        r"|LOG_LEVEL|LOG_FORMAT|HEAD_TIMEOUT|DRAIN_TIMEOUT|MAX_HELD_BYTES_TOTAL)$",
        re.IGNORECASE,
    )
    env = {name: value for name, value in os.environ.items() if not steering.search(name)}
    return env | {name: str(value) for name, value in settings.items()}


# --- the runners ------------------------------------------------------------------------------------------------------


def run_python(places, chosen):
    python = python_with_sdks()
    arguments = [python, "-m", "pytest", "-p", "no:cacheprovider", "-ra", "--tb=short", "-q", HERE / "python"]
    if chosen:
        arguments += ["-k", chosen]
    return run("pytest", arguments, places | {"PYTHONDONTWRITEBYTECODE": "1"})


def run_node(places, chosen):
    """Copies the tests beside the installed `node_modules`, where Node looks for imports, and runs them there."""
    folder = node_with_sdks()
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as stage:
        for source in (HERE / "node").glob("*.mjs"):
            shutil.copy(source, stage)
        tests = sorted(str(test) for test in pathlib.Path(stage).glob("*.test.mjs"))
        # One file at a time: the tests count what reaches the mock.
        arguments = [shutil.which("node"), "--test", "--test-concurrency=1", "--test-reporter=spec"]
        if chosen:
            arguments.append(f"--test-name-pattern={chosen}")
        return run("node", [*arguments, *tests], places)


def run(name, arguments, places):
    """Whether the runner was content; its output is shown as it comes."""
    print(f"--- {name}", flush=True)
    try:
        runner = subprocess.run([str(one) for one in arguments], env=child_env() | places, cwd=HERE, timeout=RUNNER_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name} took longer than {RUNNER_SECONDS} s", flush=True)
        return False
    return runner.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direct-only", action="store_true", help="only the mock, no proxy")
    parser.add_argument("--only", choices=("python", "node"), help="one language")
    parser.add_argument("--install-only", action="store_true", help="install the SDKs and stop")
    parser.add_argument("-k", dest="chosen", metavar="NAME", help="only tests whose name holds NAME")
    options = parser.parse_args()
    languages = [options.only] if options.only else ["python", "node"]

    # First, so that a missing tool is told before anything runs.
    if "python" in languages:
        python_with_sdks()
    if "node" in languages:
        node_with_sdks()
    if options.install_only:
        return 0

    processes = []
    content = {}
    with tempfile.TemporaryDirectory(prefix="llm-proxy-sdk-") as folder:
        folder = pathlib.Path(folder)
        try:
            mock, mock_url = start_mock(folder)
            processes.append(mock)
            places = {"MOCK_URL": mock_url, "RECORDINGS": str(ROOT / "testdata/provider")}
            if not options.direct_only:
                processes.append(start_proxy(folder, mock_url, places))
            if "python" in languages:
                content["pytest"] = run_python(places, options.chosen)
            if "node" in languages:
                content["node"] = run_node(places, options.chosen)
        finally:
            for process in reversed(processes):
                content[process.name] = process.stop()
        if not all(content.values()):
            for process in processes:
                print(process.tail(), flush=True)
    failed = [name for name, is_content in content.items() if not is_content]
    print(f"sdk tests: {'failed in ' + ', '.join(failed) if failed else 'passed'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"tests/sdk: {failure}")
