FAMILIES = {
    "flux": "jdmctl.families.flux:Flux",
    "pixart_alpha": "jdmctl.families.pixart:PixArtAlpha",
    "pixart_sigma": "jdmctl.families.pixart:PixArtSigma",
    "qwen_image": "jdmctl.families.qwen_image:QwenImage",
    "sana": "jdmctl.families.sana:Sana",
    "sd3": "jdmctl.families.sd3:SD3",
    "sdxl": "jdmctl.families.sdxl:StableDiffusionXL",
    "stable_diffusion": "jdmctl.families.stable_diffusion:StableDiffusion",
    "z_image": "jdmctl.families.z_image:ZImage",
}
