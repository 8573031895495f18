"""Stable Diffusion XL (arXiv 2307.01952): a UNet that is told the image's size and crop, two CLIPs.

Pony, Illustrious and NoobAI have the same architecture; some of them predict v.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loradash.domain.adapter import BaseModelNames
from loradash.domain.text_length import CutText, cut_of
from loradash.engines.diffusers.child.architecture import (
    AdaptedModule,
    Conditioning,
    ImageFacts,
)
from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion
from loradash.engines.diffusers.target_layers import CLIP_ATTENTION

_READ_LAYER = -2
"""SDXL reads the output of the text encoders' last layer but one."""


class StableDiffusionXL(StableDiffusion):
    """`Architecture` of Stable Diffusion XL; latents and objective are as in 1.x and 2.x."""

    pipeline: Any

    def published_names(self, prediction_type: str) -> BaseModelNames:
        """ModelSpec's and sd-scripts' names, which don't depend on the prediction."""
        del prediction_type
        return BaseModelNames(
            modelspec="stable-diffusion-xl-v1-base", kohya="sdxl_base_v1-0", is_v2=False
        )

    def text_encoders(self) -> list[AdaptedModule]:
        """CLIP-L, and OpenCLIP-G with its projection."""
        return [
            AdaptedModule(
                name=name,
                module=getattr(self.pipeline, name),
                kohya_prefix=prefix,
                target_modules=CLIP_ATTENTION,
                is_text=True,
            )
            for name, prefix in (("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2"))
        ]

    def cut(self, text: str) -> CutText | None:
        """See `Architecture.cut`; both tokenizers split a text alike."""
        cuts = []
        for tokenizer in (self.pipeline.tokenizer, self.pipeline.tokenizer_2):
            tokens = tokenizer(text, truncation=False, return_offsets_mapping=True, verbose=False)
            cuts.append(cut_of(text, tokens.offset_mapping, tokenizer.model_max_length))
        return next((cut for cut in cuts if cut is not None), None)

    def encode_captions(self, captions: Sequence[str]) -> list[Conditioning]:
        """``text`` (77, width of both encoders), and ``pooled`` (width of the second's projection).

        A caption's pooled text is at its end token, as the encoder finds it.
        """
        hidden = []
        pooled = torch.empty(0)
        for tokenizer, encoder in (
            (self.pipeline.tokenizer, self.pipeline.text_encoder),
            (self.pipeline.tokenizer_2, self.pipeline.text_encoder_2),
        ):
            tokens = tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            output = encoder(tokens.input_ids.to(self.pipeline.device), output_hidden_states=True)
            hidden.append(output.hidden_states[_READ_LAYER])
            pooled = output[0]
        text = torch.cat(hidden, dim=-1)
        return [
            {"text": one, "pooled": other}
            for one, other in zip(text.unbind(), pooled.unbind(), strict=True)
        ]

    def predict(
        self,
        noisy: Tensor,
        time: Tensor,
        captions: Sequence[Conditioning],
        images: Sequence[ImageFacts],
    ) -> Tensor:
        """Run the UNet, which is told each image's original size, crop and size."""
        text = torch.stack([caption["text"] for caption in captions])
        pooled = torch.stack([caption["pooled"] for caption in captions])
        sizes = torch.tensor(
            [[*one.original, *one.crop, *one.target] for one in images],
            dtype=torch.float32,  # bf16 doesn't hold every size
            device=text.device,
        )
        prediction: Tensor = self.pipeline.unet(
            noisy,
            time,
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        ).sample
        return prediction
