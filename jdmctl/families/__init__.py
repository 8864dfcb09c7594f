FAMILIES = {
    "sdxl": "jdmctl.families.sdxl:StableDiffusionXL",
    "stable_diffusion": "jdmctl.families.stable_diffusion:StableDiffusion",
}
