"""Numbers for people: bytes in decimal units, and durations."""


def format_bytes(number: float) -> str:
    """Bytes in powers of 1000, as disks and downloads are sold: "999 B", "1.5 MB", "2.0 TB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def format_duration(seconds: float) -> str:
    """A duration in its natural unit: "80 s", "10 min", "1.5 h". Never less than a second."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
