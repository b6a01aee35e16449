"""What can go wrong in this room. ``rust/sensor-py/src/errors.rs`` names the codes that come from Rust."""

from __future__ import annotations

from tidegate.base.errors import Fault, Misuse, Rejected


class ConfigInvalid(Rejected):
    code = "ids.config.invalid"
    advice = "Correct the named field of the [ids] or [watch] section; its bounds stand in the message."


class SettingsInvalid(Rejected):
    code = "ids.settings.invalid"
    advice = (
        "Correct the named setting or the line of the configuration file; names are Suricata's, as in suricata.yaml."
    )


class YamlMissing(Fault):
    code = "ids.yaml.missing"
    advice = "Reading a suricata.yaml needs PyYAML: `pip install 'tidegate[suricata]'`; or give settings with --set."


class BaselineInvalid(Rejected):
    code = "ids.baseline.invalid"
    advice = "Give a file that `tidegate ids baseline learn` wrote, or learn again."


class EveInvalid(Rejected):
    code = "ids.eve.invalid"
    advice = "Give a file of EVE JSON lines, as the sensor or Suricata writes them."


class BudgetInvalid(Rejected):
    code = "ids.budget.invalid"
    advice = "Name services as in `tcp/502` or `modbus`, and a limit of at least one rule."


class CapturePermission(Fault):
    code = "ids.capture.permission"
    advice = "Run as root or with CAP_NET_RAW; the worker drops it once its ring is open."


class CaptureNoInterface(Fault):
    code = "ids.capture.no-interface"
    advice = "Check the name with `ip link`; in a network namespace, run the command inside it."


class CaptureUnsupportedInterface(Rejected):
    code = "ids.capture.unsupported-interface"
    advice = "Capture on an Ethernet, loopback, PPP or tunnel interface instead."


class CaptureNotACapture(Rejected):
    code = "ids.capture.not-a-capture"
    advice = "Give an uncompressed pcap or pcapng file."


class CaptureFailed(Fault):
    code = "ids.capture.failed"
    advice = "Read the system's message; check the file, or the interface and the memory that packet rings may lock."


class CaptureClosed(Misuse):
    code = "ids.capture.closed"
    advice = "Open a new capture; a closed one is not opened again."


class LogBusy(Fault):
    code = "ids.log.busy"
    advice = "Stop the other reader, or log to another group; /proc/net/netfilter/nfnetlink_log lists those in use."


class QueueBusy(Fault):
    code = "ids.queue.busy"
    advice = "Stop the other inspector, or give this one another queue; /proc/net/netfilter/nfnetlink_queue lists them."


class QueuePermission(Fault):
    code = "ids.queue.permission"
    advice = "Run as root or with CAP_NET_ADMIN and CAP_NET_RAW, in the network namespace whose packets are inspected."


class ProxyListen(Fault):
    code = "ids.proxy.listen"
    advice = "Check that the address is this machine's and that no other program listens on the port."


class SensorMissing(Fault):
    code = "ids.sensor.missing"
    advice = "Build the Rust module: `maturin develop --release`, or install a wheel of this platform."


class SensorInternal(Fault):
    code = "ids.sensor.internal"
    advice = "This is a defect of the sensor: restart it and report it with the capture that led here."


class WorkerConfinement(Fault):
    code = "ids.worker.confinement"
    advice = "The worker could not give up its privileges and did not start; check that the user 'nobody' exists."


class WatchTooManyFiles(Rejected):
    code = "ids.watch.too-many-files"
    advice = "Name fewer or smaller folders in watch.paths; logs and data do not belong there."


class WatchFailed(Fault):
    code = "ids.watch.failed"
    advice = "Raise fs.inotify.max_user_watches or name fewer folders in watch.paths."
