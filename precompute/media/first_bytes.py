"""What a file without a suffix is, by its first bytes: https://www.garykessler.net/library/file_sigs.html."""

LOOKED = 64  # bytes
BEGINS = {
    "image": (
        *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\xff\x0a"),
        *(b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL "),
    ),
    "audio": (b"fLaC", b"ID3\2", b"ID3\3", b"ID3\4", b"OggS", b"#!AMR", b".snd", b"caff", b"wvpk", b"TTA1", b"\x0bw"),
    "video": (b"\x1aE\xdf\xa3", b"FLV\1", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11"),
}
RIFF = {b"WAVE": "audio", b"WEBP": "image", b"AVI ": "video"}
PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def modality_of_bytes(head: bytes) -> str | None:
    """ "image", "audio", "video" or None, by the first bytes of a file."""
    if head[:4] in (b"RIFF", b"RF64"):
        return RIFF.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "image" if brand in PICTURE_BRANDS else "audio" if brand in (b"M4A ", b"M4B ") else "video"
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # two reserved numbers
        return "image"
    if len(head) > 2 and head[0] == 0xFF and _is_mpeg_audio(head[1], head[2]):
        return "audio"
    if head[:4] == b"OggS" and b"theora" in head:
        return "video"
    return next((modality for modality, begins in BEGINS.items() if head.startswith(begins)), None)


def _is_mpeg_audio(second: int, third: int) -> bool:
    """Whether these bytes after 0xff begin a frame of MP3, MP2 or AAC: version, layer, bit rate, sampling rate."""
    if second & 0xF6 == 0xF0:  # AAC
        return True
    sync, version, layer = second & 0xE0 == 0xE0, second >> 3 & 3, second >> 1 & 3
    return sync and version != 1 and layer in (1, 2) and third >> 4 not in (0, 15) and third >> 2 & 3 != 3
