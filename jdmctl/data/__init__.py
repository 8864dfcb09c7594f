DATA = {
    "images": "jdmctl.data.imagefolder:ImageFolder",
    "conditions": "jdmctl.data.conditionfolder:ConditionFolder",
    "prompts": "jdmctl.data.prompts:PromptList",
}
