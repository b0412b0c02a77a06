"""Motion: Ego4D's recordings, windows of them, and IMU2CLIP's encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import put, reasons, said
from safetensors.torch import load_file
from tiny_media import MOTION, recording, recordings
from torch.nn import functional

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders import load_encoder, load_encoder_like
from periscope.precompute.media import decode_imu, thumbnail
from periscope.precompute.media.imu import read_window
from periscope.precompute.sources import collect
from periscope.precompute.tiny_encoders import imu2clip_folder

UID = "001e3e4e-2743-47fc-8564-d5efd11f9e90"


def test_a_window_is_at_200_hertz_with_the_accelerations_first(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text(recording(20, hertz=0.5))
    signal = decode_imu(read_window(3, 8, path))
    assert signal.shape == (6, 1000) and signal.dtype == np.float32
    times = 3 + np.arange(0, 996) / 200  # the last row of 50 Hz is at 7.98 s
    for row, axis in enumerate((3, 4, 5, 0, 1, 2)):
        right = np.sin(2 * np.pi * (0.5 + axis / 10) * times) + axis
        assert np.abs(signal[row, :996] - right).max() < 0.01
    assert not signal[:, 997:].any(), "behind the last row there is nothing"


def test_rows_out_of_order_without_a_time_and_cut(tmp_path: Path) -> None:
    """https://ego4d-data.org/docs/data/imu: canonical_timestamp_ms may be NULL, and times may go back."""
    head, *rows = recording(6).splitlines()
    (path := tmp_path / "whole.csv").write_text("\n".join([head, *rows]) + "\n")
    wanted = decode_imu(read_window(0, 5, path))
    noise = ["0,7.0,,1,2,3,4,5,6", "0,7.0,NULL,1,2,3,4,5,6", "0,7.0", "0,x,nan,9,9,9,9,9,9"]
    mixed = [*rows[100:], noise[0], *rows[:100], *noise[1:]]
    (path := tmp_path / "mixed.csv").write_bytes("\r\n".join([head, *mixed]).encode())
    assert np.array_equal(decode_imu(read_window(0, 5, path)), wanted)
    lacking = [",".join([*row.split(",")[:6], "", "nan", row.split(",")[8]]) for row in rows]
    (path := tmp_path / "lacking.csv").write_text("\n".join([head, *lacking]))
    found = decode_imu(read_window(0, 5, path))
    assert not found[:2].any() and np.array_equal(found[2:], wanted[2:])


def test_a_recording_that_changed_is_read_again(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text(recording(6))
    first = read_window(0, 5, path)
    path.write_text(recording(6, hertz=2.5) + "\n")
    assert read_window(0, 5, path) != first


def test_what_is_no_window_of_motion(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text(recording(6))
    with pytest.raises(MediaError, match="too few rows in the window: 0 from 7 s to 12 s"):
        read_window(7, 12, path)
    (other := tmp_path / "b.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MediaError, match=f"not a recording of motion: its first line lacks {MOTION.split(',')[2]}"):
        read_window(0, 5, other)
    for data in (b"", b"\xff\xfe\x00", f"{MOTION}\n1,2,3\n".encode()):
        with pytest.raises(MediaError):
            decode_imu(data)
    assert thumbnail(path.read_bytes(), "imu").startswith(b"\xff\xd8")


def test_tables_of_windows(tmp_path: Path) -> None:
    """https://github.com/facebookresearch/imu2clip, splits/dataset_motion_narr_2.5_test_0.csv."""
    recordings(tmp_path, 4)
    lines = ["window_start,window_end,video_uid,text", f"0,5,{UID},no recording", "0,7,x,seven seconds", "0,5,y,"]
    put(tmp_path / "motion_validation.csv", "\n".join(lines))
    found = collect(tmp_path)
    assert found.layout == "Ego4D" and {medium.modality for medium in found.media.values()} == {"imu"}
    first = "imu/00000000-0000-4000-8000-000000000000.csv/0-5"
    assert said(found)[0] == ((first,), ("a small blue star",), "test")
    assert [text.split for text in found.words] == ["test"] * 3 + ["train"]
    assert found.words[0].meta == {"task": "ego4d-imu", "label": "head movement"}
    assert reasons(found) == [(f"{UID}.csv", "missing file"), *[("motion_validation.csv", "bad line")] * 2]
    assert not found.unused
    assert len(found.media[first].read().splitlines()) == 251


@pytest.mark.parametrize("broken", [False, True])
def test_recordings_of_any_name_among_broken_ones(broken: bool, tmp_path: Path) -> None:
    """imu/*.csv with windows.csv: the good windows are read, each of the others says what is wrong with it."""
    lines = ["window_start,window_end,video_uid,text", "0,5,walk,walks", "5,10,walk,sits", "10,15,walk,runs"]
    put(tmp_path / "imu/walk.csv", recording(10))
    if broken:
        spoiled = {"empty": b"", "header": MOTION.encode(), "noise": bytes(range(128, 256)) * 9}
        spoiled["headerless"] = recording(5).partition("\n")[2].encode()
        for name, content in spoiled.items():
            (tmp_path / "imu" / f"{name}.csv").write_bytes(content)
        lines += [f"0,5,{name},walks" for name in (*spoiled, "gone")]
    put(tmp_path / "windows.csv", "\n".join(lines))
    put(tmp_path / "notes.csv", "day,weather\n1,rain\n")
    found = collect(tmp_path)
    assert found.layout == "Ego4D" and reasons(found) == [("gone.csv", "missing file")] * broken
    assert [text.turns[0]["content"] for text in found.words][:3] == ["walks", "sits", "runs"]
    told = {}
    for origin, medium in found.media.items():
        try:
            assert decode_imu(medium.read()).shape == (6, 1000)
        except MediaError as error:
            told[origin] = error.reason
    wrong = {f"imu/{name}.csv/0-5": "not a recording of motion" for name in ("empty", "headerless", "noise")}
    wrong["imu/header.csv/0-5"] = "too few rows in the window"
    assert told == {"imu/walk.csv/10-15": "too few rows in the window"} | (wrong if broken else {})


def test_narrations(tmp_path: Path) -> None:
    """https://ego4d-data.org/docs/data/annotations-schemas: narration.json; windows as in IMU2CLIP's dataloader."""
    put(tmp_path / "v2/imu" / f"{UID}.csv", recording(30))
    told = [
        {"timestamp_sec": 12.9, "narration_text": "#C C picks up a cup.", "annotation_uid": "a", "timestamp_frame": 1},
        {"timestamp_sec": 2.0, "narration_text": "#C C looks at #unsure", "annotation_uid": "a", "timestamp_frame": 2},
        {"timestamp_sec": 20.0, "narration_text": "#O A man X walks", "annotation_uid": "a", "timestamp_frame": 3},
        {"timestamp_sec": None, "narration_text": "#C C sits"},
    ]
    videos = {
        UID: {"narration_pass_1": {"narrations": told[:2], "summaries": []}, "narration_pass_2": {"narrations": told}},
        UID.replace("001e", "002e"): {"narration_pass_1": {"narrations": told}},
    }
    (tmp_path / "v2/annotations").mkdir()
    (tmp_path / "v2/annotations/narration.json").write_text(json.dumps(videos))
    found = collect(tmp_path)
    windows = [f"v2/imu/{UID}.csv/10-15", f"v2/imu/{UID}.csv/0-5"]
    assert list(found.media) == windows and not found.problems
    texts = [((windows[0],), ("picks up a cup",), None), ((windows[1],), ("looks at something",), None)]
    assert said(found) == texts * 2
    assert "Ego4D: 1 videos of narration.json have no recording of motion here" in found.notes


@torch.no_grad()
@pytest.mark.parametrize("form", ["safetensors", "pt", "ckpt"])
def test_the_encoder_is_imu2clips(form: str, tmp_path: Path) -> None:
    """Against its layers written out: the GRU reads 32 channels, each a row of 32 moments."""
    folder = imu2clip_folder(tmp_path / "weights")
    state = load_file(folder / "encoder.safetensors")
    if form != "safetensors":
        held = {f"imu_encoder.{name}": weight for name, weight in state.items()} | {"text_encoder.x": torch.zeros(2)}
        torch.save(state if form == "pt" else {"state_dict": held, "epoch": 3}, folder / f"encoder.{form}")
        (folder / "encoder.safetensors").unlink()
    encoder = load_encoder(f"imu2clip:{folder}")
    window = encoder.preprocess(encoder.decode(recording(5).encode()))[None]
    x = functional.group_norm(window, 2, state["net.0.weight"], state["net.0.bias"])
    for number in (1, 2, 3):
        x = functional.max_pool1d(functional.conv1d(x, state[f"net.{number}.net.0.weight"], dilation=2), 3)
    assert x.shape == (1, 8, 32)
    x = functional.group_norm(x, 4, state["net.4.weight"], state["net.4.bias"])
    hidden = torch.zeros(1, 16)
    for row in x[0]:
        gates = row @ state["net.5.weight_ih_l0"].T + state["net.5.bias_ih_l0"]
        kept = hidden @ state["net.5.weight_hh_l0"].T + state["net.5.bias_hh_l0"]
        (r, z, n), (hr, hz, hn) = gates.chunk(3), kept.chunk(3, 1)
        new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        hidden = new + torch.sigmoid(z + hz) * (hidden - new)
    torch.testing.assert_close(encoder.encode(window, ("pooled",))["pooled"], hidden, rtol=1e-4, atol=1e-5)
    assert (encoder.modality, encoder.width, encoder.kinds) == ("imu", 16, {"pooled"})
    assert load_encoder_like(json.loads(json.dumps(encoder.describe()))).describe() == encoder.describe()


def test_weights_that_arent_its_own(tmp_path: Path) -> None:
    with pytest.raises(PrecomputeError, match="there is no folder imu2clip"):
        load_encoder("imu2clip")
    folder = imu2clip_folder(tmp_path / "weights")
    state = load_file(folder / "encoder.safetensors")
    (folder / "encoder.safetensors").unlink()
    for number, (content, sentence) in enumerate(
        (
            ({"a": torch.zeros(2)}, "has no weight called"),
            (state | {"net.5.weight_ih_l0": torch.zeros(48, 31)}, "aren't weights of IMU2CLIP's encoder for 5 seconds"),
            ({name: weight for name, weight in state.items() if "net.2" not in name}, "aren't weights of IMU2CLIP's"),
            ([1, 2], "something else than a model's tensors"),
        )
    ):
        (place := tmp_path / str(number)).mkdir()
        torch.save(content, place / "encoder.pt")
        with pytest.raises(PrecomputeError, match=sentence):
            load_encoder(f"imu2clip:{place}")
    (place / "more.pt").write_bytes(b"damaged")
    with pytest.raises(PrecomputeError, match="holds 2 of them"):
        load_encoder(f"imu2clip:{place}")
