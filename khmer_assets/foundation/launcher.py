"""The first moments of a background process: it notes who it is, and then becomes its command.

    python launcher.py IDENTITY DESCRIPTOR COMMAND...

What belongs here: what must be true of a process before its command runs. What does not: finding and stopping it
(`processes.py`). The process itself writes the file IDENTITY, so that none runs that nobody knows of, whenever whoever
starts it is killed. DESCRIPTOR is a pipe that closes when the command runs, and before that tells why it does not.
"""

import json
import os
import signal
import sys


def identity_of(pid: int) -> dict[str, int | str]:
    """What no two processes share, and no change of the clock moves: the boot, the start in its ticks, the number.

    Raises `FileNotFoundError` when there is no such process.
    """
    with open(f"/proc/{pid}/stat") as stat, open("/proc/sys/kernel/random/boot_id") as boot:
        fields = stat.read().rpartition(")")[2].split()  # the name before may hold anything
        return {"pid": pid, "start_ticks": int(fields[19]), "boot": boot.read().strip()}


def main() -> None:
    """Write the identity, take back what a parent has ignored, and run the command."""
    file, descriptor, *command = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    try:
        with open(f"{file}.aside", "w") as aside:
            json.dump(identity_of(os.getpid()), aside)
        os.replace(f"{file}.aside", file)
        # a shell's background jobs ignore SIGINT, and what Dagster starts SIGTERM too: it would not end when told to
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(int(descriptor), f"{command[0]}: {error}".encode())
        sys.exit(127)


if __name__ == "__main__":
    main()
