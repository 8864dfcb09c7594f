FAMILIES = {"stable_diffusion": "jdmctl.families.stable_diffusion:StableDiffusion"}
