REWARDS = {
    "aesthetic": "jdmctl.rewards.aesthetic:Aesthetic",
    "brightness": "jdmctl.rewards.closed_form:Brightness",
    "classifier": "jdmctl.rewards.classifier:Classifier",
    "clip": "jdmctl.rewards.clip:Clip",
    "colorfulness": "jdmctl.rewards.closed_form:Colorfulness",
    "contrast": "jdmctl.rewards.closed_form:Contrast",
    "hps": "jdmctl.rewards.hps:HPS",
    "imagereward": "jdmctl.rewards.imagereward:ImageReward",
    "pickscore": "jdmctl.rewards.pickscore:PickScore",
    "preference": "jdmctl.rewards.preference:Preference",
    "warmth": "jdmctl.rewards.closed_form:Warmth",
}
