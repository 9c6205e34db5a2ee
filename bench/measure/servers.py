"""What is compared: each server with an image of its own below one directory, all of them up throughout.

A server has a name, a `uri`, `start` and `stop`; what it uses of CPU and memory is read from /proc. `--direct` has each reach its
file past the page cache, as far as it can: sealvol and qemu-nbd by O_DIRECT, nbdkit's file plugin (which has no O_DIRECT) by
telling the kernel to keep nothing (`cache=none`).
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time


def output(*command):
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {found.returncode}\n{found.stdout}{found.stderr}")
    return found.stdout.strip()


class Server:
    """A running NBD server; `programs` is where ours were built."""

    fills = True  # whether it holds what is written to it
    engine = "nbd"

    def __init__(self, name, directory, size, programs, direct):
        self.name, self.directory, self.size = name, directory, size
        self.programs, self.direct = pathlib.Path(programs), direct
        self.directory.mkdir()
        self.socket, self.export, self.process = directory / "nbd.sock", "", None

    @property
    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket}"

    def run(self, *command):
        with open(self.directory / "server.log", "a") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        for _ in range(300):
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended:\n" + (self.directory / "server.log").read_text())
            if self.ready():
                return
            time.sleep(0.1)
        sys.exit(f"{self.name} does not serve {self.uri}")

    def ready(self):
        return subprocess.run(["nbdinfo", "--size", self.uri], capture_output=True).returncode == 0

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def fresh(self):
        """Another one of the kind, empty."""
        directory = self.directory.with_name(self.directory.name + ".fresh")
        other = type(self)(self.name, directory, self.size, self.programs, self.direct)
        other.start()
        return other

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self):
        try:
            pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            pass  # not permitted: the peak is then that of the whole run

    def peak_kib(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        return 0

    def image(self, more=0):
        image = self.directory / "image"
        with open(image, "wb") as file:
            file.truncate(self.size + more)
        return image

    def luks(self):
        """A LUKS image, and the file with its passphrase."""
        image, passphrase = self.image(4 << 20), self.directory / "passphrase"
        passphrase.write_text("benchmark")
        output("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks1", "--cipher", "aes-xts-plain64", "--key-size", "512",
               "--pbkdf-force-iterations", "1000", str(image), str(passphrase))
        return image, passphrase


class Sealvol(Server):
    def start(self):
        runtime = self.directory / "run"
        runtime.mkdir()
        self.socket, self.export = runtime / "nbd.sock", "bench"
        self.command = [str(self.programs / "sealvol"), "--control", str(runtime / "control.sock")]
        self.run(self.programs / "sealvold", "--state-dir", self.directory / "state", "--runtime-dir", runtime)
        output(*self.command, "volume", "create", "bench", "--size", str(self.size))
        output(*self.command, "volume", "attach", "bench", *(["--direct"] if self.direct else []))

    def ready(self):
        return subprocess.run([*self.command, "status"], capture_output=True).returncode == 0

    def version(self):
        status = json.loads(output(*self.command, "--json", "status"))
        return f"{output(str(self.programs / 'sealvold'), '--version')}, {self.programs}, keys in {status['key_memory']['protection']}"


class Ceiling(Server):
    """Our protocol code over a volume that does nothing: crates/nbd/examples/ceiling.rs."""

    fills = False

    def start(self):
        self.run(self.programs / "examples" / "ceiling", self.socket, self.size)

    def version(self):
        return "our protocol code, a volume that does nothing"


class Nbdkit(Server):
    def serve(self, *what):
        self.run("nbdkit", "-f", "-U", self.socket, *what, *(["cache=none"] if self.direct else []))

    def version(self):
        return output("nbdkit", "--version")


class NbdkitFile(Nbdkit):
    def start(self):
        self.serve("file", self.image())

    def version(self):
        return super().version() + " file, PLAINTEXT"


class NbdkitLuks(Nbdkit):
    def start(self):
        image, passphrase = self.luks()
        self.serve("--filter=luks", "file", image, f"passphrase=+{passphrase}")

    def version(self):
        return super().version() + " file, luks filter"


class QemuNbd(Server):
    def serve(self, driver, image, *more):
        direct = ",file.cache.direct=on,file.aio=io_uring" if self.direct else ""
        options = f"{driver},file.driver=file,file.filename={image}{direct}"
        self.run("qemu-nbd", "-k", self.socket, "-t", "-e", "64", "--discard=unmap", *more, "--image-opts", options)

    def start(self):
        self.serve("driver=raw", self.image())

    def version(self):
        return output("qemu-nbd", "--version").splitlines()[0] + ", raw, PLAINTEXT"


class QemuNbdLuks(QemuNbd):
    def start(self):
        image, passphrase = self.luks()
        self.serve("driver=luks,key-secret=key", image, "--object", f"secret,id=key,file={passphrase}")

    def version(self):
        return output("qemu-nbd", "--version").splitlines()[0] + ", LUKS"


class RawFile(Server):
    """No server: fio's own io_uring on a plain file, past the page cache. The client's CPU time is all there is."""

    engine = "io_uring"

    def start(self):
        self.file = self.image()

    @property
    def uri(self):
        return str(self.file)

    def stop(self):
        pass

    def cpu_seconds(self):
        return 0.0

    def forget_peak(self):
        pass

    def peak_kib(self):
        return 0

    def version(self):
        return output("fio", "--version") + ", io_uring on the raw file, PLAINTEXT, no server"


KINDS = {
    "sealvol": Sealvol,
    "nbdkit-file": NbdkitFile,
    "nbdkit-luks": NbdkitLuks,
    "qemu-nbd": QemuNbd,
    "qemu-nbd-luks": QemuNbdLuks,
    "ceiling": Ceiling,
    "fio-io_uring": RawFile,
}


def fill(servers, directory, size):
    """The same random bytes into each image."""
    content = directory / "content"
    with open(content, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    for server in servers:
        if server.engine != "nbd":
            shutil.copyfile(content, server.file)
        elif server.fills:
            output("nbdcopy", "--flush", str(content), server.uri)
    content.unlink()
    os.sync()
