"""Networks over sound in a build: a waveform or its spectrogram in, at a rate and by numbers that the user says, for
nothing shows them.
"""

import dataclasses
from collections.abc import Sequence

import msgspec

from flambeau.builder.shapes import InputForm
from flambeau.bundle.pipeline_config import AudioConfig, MelConfig
from flambeau.errors import BundleError, SourceError
from flambeau.items import FREE
from flambeau.pipelines import audio
from flambeau.settings.source import SourceOptions
from flambeau.types import TensorSpec


def taken(form: InputForm, options: SourceOptions, name: str) -> InputForm:
    """The same inputs, of sound if the user says so. Raises `SourceError` for what cannot be a waveform."""
    if options.pipeline != "audio":
        return form
    [spec, *others] = form.inputs
    mel = mel_of(options.log_mel) if options.log_mel is not None else None
    if others or not (_is_waveform(spec) if mel is None else _is_spectrogram(spec, mel.mels)):
        listed = ", ".join(f"{each.name} {each}" for each in form.inputs)
        raise SourceError(
            f"{name} takes {listed}, and a waveform is float32 of shape samples or 1,samples: say --input-shape "
            "samples, or --log-mel if it takes a spectrogram"
            if mel is None
            else f"{name} takes {listed}, and --log-mel makes float32 of shape {mel.mels},frames or "
            f"1,{mel.mels},frames: say --input-shape {mel.mels},frames, or another number of mels; if its frames come "
            "first, give a class whose forward() turns them: super().forward(sound.transpose(-1, -2))"
        )
    if options.sample_rate is None:
        raise SourceError(
            f"the sampling rate that {name} was trained with does not show in a file: say --sample-rate, "
            "such as --sample-rate 16000"
        )
    try:
        audio.require()
    except BundleError as error:
        raise SourceError(f"{error}; --pipeline tensor serves {name} over numbers") from None
    config = _config([spec], options) if mel is None else _config_of_frames(spec, mel, options)
    return dataclasses.replace(form, image=None, audio=config)


def mel_of(text: str) -> MelConfig:
    """The value of `--log-mel`, such as `n_fft=400,hop=160,mels=64`. Raises `SourceError`."""
    members = [part.strip().partition("=") for part in text.split(",")]
    given = {key: value for key, _, value in members}
    try:
        if len(given) != len(members):
            raise ValueError("a name stands there twice")
        return msgspec.convert(given, MelConfig, strict=False)
    except ValueError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(MelConfig))
        raise SourceError(
            f"--log-mel {text} is not understood: {error}: say it like n_fft=400,hop=160,mels=64; known are {known}"
        ) from None


def _is_spectrogram(spec: TensorSpec, mels: int) -> bool:
    shape = spec.shape
    return spec.dtype == "float32" and len(shape) in (2, 3) and shape[-2] == mels and shape[:-2] in ((), (1,))


def _config_of_frames(spec: TensorSpec, mel: MelConfig, options: SourceOptions) -> AudioConfig:
    """The config of a network over a spectrogram. Raises `SourceError` for numbers that do not go together."""
    rate = options.sample_rate
    assert rate is not None  # the caller checked
    if mel.low >= (mel.high or rate / 2) or (mel.high or 0) > rate / 2:
        told = f"{mel.low:g} to {mel.high or rate / 2:g} Hz"
        raise SourceError(
            f"--log-mel has bands from {told}; of a sound at {rate:g} Hz, they go up to {rate / 2:g} Hz: correct it"
        )
    most = spec.shape[-1] * mel.hop - 1
    if spec.shape[-1] == FREE:
        seconds = options.max_seconds or AudioConfig(rate).seconds
    elif options.max_seconds is not None or most <= mel.n_fft // 2:
        raise SourceError(
            f"the network takes {spec.shape[-1]} frames, which are {most:,} samples: "
            + ("leave --max-seconds out" if options.max_seconds is not None else f"too few for n_fft={mel.n_fft}")
        )
    else:
        seconds = most / rate
    return AudioConfig(rate=rate, seconds=seconds, threshold=options.threshold or 0.0, mel=mel)


def _is_waveform(spec: TensorSpec) -> bool:
    return spec.dtype == "float32" and (len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[0] == 1))


def _config(specs: Sequence[TensorSpec], options: SourceOptions) -> AudioConfig:
    assert options.sample_rate is not None  # the caller checked
    config = AudioConfig(rate=options.sample_rate, threshold=options.threshold or 0.0)
    length = specs[0].shape[-1]
    if length != FREE:
        seconds = length / options.sample_rate
        if options.max_seconds not in (None, seconds):
            raise SourceError(
                f"--max-seconds {options.max_seconds:g}, but the network takes {length:,} samples, which are "
                f"{seconds:g} seconds: leave it out"
            )
        return AudioConfig(rate=config.rate, seconds=seconds, threshold=config.threshold)
    return AudioConfig(rate=config.rate, seconds=options.max_seconds or config.seconds, threshold=config.threshold)
