"""Files of models that are not read are named for what they are, with the way to one that is."""

import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from noisebook import BackboneError, backbones
from noisebook.backbones.foreign import what_is
from noisebook.cli.main import main

T = torch.zeros(2, 2)
WHOLE = {"model.diffusion_model.input_blocks.0.0.weight": T, "first_stage_model.encoder.conv_in.weight": T}
XL = {**WHOLE, "conditioner.embedders.0.transformer.x": T}


def saved(**tensors):
    return lambda path: save_file({name: t.clone() for name, t in tensors.items()}, path)


def pickled(value):
    return lambda path: torch.save(value, path)


def written(data: bytes):
    return lambda path: path.write_bytes(data)


def scripted(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/code/__torch__.py", "")
        archive.writestr("net/data.pkl", "")
        archive.writestr("net/constants.pkl", "")


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/model_index.json", "{}")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
FOREIGN = {  # name -> (what writes it, what is said, what leads on)
    "lora.safetensors": (saved(**{"lora_unet_x.lora_down.weight": T}), "a LoRA", "fuse_lora"),
    "peft.safetensors": (saved(**{"base_model.model.q.lora_A.weight": T}), "a LoRA", "load_lora_weights"),
    "diffusers.safetensors": (saved(**{"unet.attn.processor.to_q_lora.down.weight": T}), "a LoRA", "save_pretrained"),
    "sd.safetensors": (saved(**WHOLE), "single-file checkpoint of Stable", "StableDiffusionPipeline.from_single_file"),
    "xl.safetensors": (saved(**XL), "single-file checkpoint of SDXL", "StableDiffusionXLPipeline.from_single_file"),
    "sd3.safetensors": (saved(**{"model.diffusion_model.joint_blocks.0.w": T}), "Stable Diffusion 3", "from_single_file"),
    "flux.safetensors": (saved(**{"double_blocks.0.img_attn.qkv.weight": T}), "of Flux", "FluxPipeline"),
    "control.safetensors": (saved(**{"control_model.input_blocks.0.weight": T}), "a ControlNet", "diffusers layout"),
    "vae.safetensors": (
        saved(**{"encoder.conv_in.weight": T, "decoder.conv_in.weight": T}),
        "an autoencoder only",
        "folder",
    ),
    "clip.safetensors": (saved(**{"text_model.embeddings.x": T}), "a text encoder only", "folder of the pipeline"),
    "unet.safetensors": (saved(**{"down_blocks.0.resnets.0.x": T}), "without their config", "give the folder"),
    "int4.safetensors": (saved(**{"blocks.0.qweight": T}), "a quantised model", "was made from"),
    "half.safetensors": (lambda path: path.write_bytes((1 << 20).to_bytes(8, "little") + b"{"), "beginning", "again"),
    "sd.ckpt": (pickled({"state_dict": WHOLE}), "single-file checkpoint", "from_single_file"),
    "lora.pt": (pickled({"q.lora_up.weight": T}), "a LoRA", "fuse_lora"),
    "code.ckpt": (pickled({"state_dict": WHOLE, "trainer": zipfile.ZipFile}), "a pickle", "from_single_file"),
    "other.pt": (pickled([1, 2]), "weights of PyTorch in a pickle", "noisebook convert"),
    "edm.pkl": (written(b"\x80\x04}."), "a pickle, which can run code", "noisebook convert"),
    "pytorch_model.bin": (pickled(WHOLE), "a pickle", "use_safetensors=False"),
    "model.gguf": (written(b"GGUF\3\0\0\0"), "GGUF", "was made from"),
    "renamed.safetensors": (written(b"GGUF\3\0\0\0"), "GGUF", "was made from"),
    "model.onnx": (written(b"\x08\x08\x12\x07pytorch"), "an ONNX graph", "was made from"),
    "program.pt": (scripted, "a TorchScript program", "was made from"),
    "weights.h5": (written(b"\x89HDF\r\n\x1a\n"), "HDF5", "was made from"),
    "flax.msgpack": (written(b"\x82\xa6"), "Flax", "from_flax=True"),
    "pointer.safetensors": (written(POINTER), "a pointer of Git LFS", "git lfs pull"),
    "pointer.ckpt": (written(POINTER), "a pointer of Git LFS", "git lfs pull"),
    "page.safetensors": (written(PAGE), "a page of HTML", "resolve/main"),
    "page.pt": (written(b"\n " + PAGE.lower()), "a page of HTML", "login"),
    "empty.safetensors": (written(b""), "an empty file", "again"),
    "images.npz": (lambda path: np.savez(path, images=np.zeros(1)), "arrays of numpy", "fit-prior"),
    "folder.zip": (zipped, "an archive", "unpack"),
    "curve.json": (written(b'{"noisebook_curve": 1}'), "a JSON file", "--curve"),
    "a.nbk": (written(b"NBK1"), "noisebook's tokens", "made with"),
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_foreign_files_are_named(name, tmp_path):
    write, what, way = FOREIGN[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(BackboneError) as info:
        backbones.load(str(path))
    message = str(info.value)
    assert what in message
    assert way in message
    assert "\n" not in message
    if path.suffix in (".pt", ".ckpt"):  # an option does not hide what the file is
        with pytest.raises(BackboneError, match=what):
            backbones.load(str(path), prompt="a cat")


def test_what_is_not_known_is_not_guessed(tmp_path):
    path = tmp_path / "some.dat"
    path.write_bytes(b"what else")
    assert what_is(path) == what_is(tmp_path / "none") == ""
    save_file({"weight": T}, path)
    assert what_is(path) == ""


@pytest.mark.parametrize("name", ["sd.safetensors", "pointer.safetensors", "pytorch_model.bin", "model.onnx"])
def test_a_folder_without_a_config_says_what_is_in_it(name, tmp_path):
    pytest.importorskip("diffusers")
    write, what, way = FOREIGN[name]
    write(tmp_path / name)
    with pytest.raises(BackboneError, match=r"no config\.json") as info:
        backbones.load(str(tmp_path))
    assert f"{name} in it is" in str(info.value)
    assert what in str(info.value)
    assert way in str(info.value)


def test_convert_names_what_it_does_not_read(tmp_path, capsys):
    for name in ("lora.safetensors", "sd.ckpt"):
        write, what, _ = FOREIGN[name]
        write(tmp_path / name)
        assert main(["convert", str(tmp_path / name), "-o", str(tmp_path / "out.safetensors")]) == 6
        assert what in capsys.readouterr().err
