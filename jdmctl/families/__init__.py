FAMILIES = {
    "sd3": "jdmctl.families.sd3:SD3",
    "sdxl": "jdmctl.families.sdxl:StableDiffusionXL",
    "stable_diffusion": "jdmctl.families.stable_diffusion:StableDiffusion",
}
