"""Behaves on the outside like PanDA's runHPO in offline mode, as far as files and exit codes go.

Which of the two layouts of ``JobsEventRanges.json`` it understands, and how it calls its dump, come
with ``LAYOUT`` (nested | direct) and ``DUMP``. ``--checkPointInterval`` may be a fraction.
"""

from __future__ import annotations

import getopt
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import uuid
import zlib
from pathlib import Path
from typing import Any

JOB, TASK = "PandaID", "PanDA_TaskID"
LONG = ("inSampleFile", "sourceURL", "outMetaFile", "checkPointToSave", "checkPointToLoad")


def main() -> int:
    pairs, _ = getopt.getopt(
        sys.argv[1:], "o:j:p:a:", [f"{name}=" for name in (*LONG, "checkPointInterval")]
    )
    given = {name.lstrip("-"): value for name, value in pairs}
    assert "PAYLOAD_OFFLINE_MODE" in os.environ
    home = Path.cwd()
    work = home / "workDir"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    os.chdir(work)
    subprocess.run(["tar", "-xzf", home / given["a"]], check=True)
    event = read_event(home)
    sample = event["eventRangeID"].split("-")[3]
    if event["hp_point"]["loss"] is not None:
        return 160
    Path(given["inSampleFile"]).write_text(json.dumps(event["hp_point"]["parameters"]))
    load_checkpoint(event, given)
    dump = home / os.environ.get("DUMP", "event_status.dump")
    if "checkPointToSave" in given:
        threading.Thread(target=announce, args=(given, sample, dump), daemon=True).start()
    command = urllib.parse.unquote(given["p"])
    status = subprocess.run(f"PATH=.:$PATH; {command}", shell=True, check=False).returncode
    return finish(home, dump, event["eventRangeID"], given, status)


def read_event(home: Path) -> dict[str, Any]:
    entry = json.loads((home / "JobsEventRanges.json").read_text())[os.environ[JOB]][0]
    nested = os.environ.get("LAYOUT", "nested") == "nested"
    found: dict[str, Any] = entry["eventRanges"][0] if nested else entry
    return found


def load_checkpoint(event: dict[str, Any], given: dict[str, str]) -> None:
    if "checkPointToSave" not in given or "checkpoint" not in event:
        return
    if "checkPointToLoad" in given:
        shutil.move(event["checkpoint"], given["checkPointToLoad"])
    else:
        subprocess.run(["tar", "-xzf", event["checkpoint"]], check=True)


def announce(given: dict[str, str], sample: str, dump: Path) -> None:
    target = Path(f"{os.environ[TASK]}_{sample}").absolute()
    looked = 0.0
    while True:
        names = given["checkPointToSave"].split(",")
        times = [os.stat(name).st_mtime for name in names if os.path.exists(name)]
        # The kernel's clock for files is some milliseconds behind: what was written since then.
        fresh, looked = [at for at in times if at >= looked - 0.1], time.time()
        if fresh:
            with tarfile.open(f"{target}.tmp", "w:gz") as tar:
                for name in names:
                    tar.add(name)
            shutil.move(f"{target}.tmp", target)
            if not dump.exists():
                dump.write_text(json.dumps({os.environ[JOB]: [word_of(target)]}))
        time.sleep(float(given["checkPointInterval"]) * 60)


def word_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {
        "guid": str(uuid.uuid4()),
        "path": str(path),
        "fsize": len(data),
        "type": "checkpoint",
        "chksum": f"{zlib.adler32(data):08x}",
    }


def finish(home: Path, dump: Path, range_id: str, given: dict[str, str], status: int) -> int:
    output = Path(given["o"])
    if not output.exists():
        status = 150
    else:
        found = json.loads(output.read_text())
        if found.get("status", 0) == 0:
            word = {"eventRangeID": range_id, "eventStatus": "finished", "loss": found["loss"]}
            dump.write_text(json.dumps({os.environ[JOB]: [word]}))
        shutil.move(output, home)
    meta = Path(given.get("outMetaFile", "out_metadata.json"))
    if meta.exists():
        report = {"user_job_metadata": json.loads(meta.read_text())}
        (home / "jobReport.json").write_text(json.dumps(report))
    os.chdir(home)
    shutil.rmtree("workDir")
    return status


if __name__ == "__main__":
    sys.exit(main())
