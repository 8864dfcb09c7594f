CONTROLS = {
    "canny": "jdmctl.controls.canny:Canny",
    "depth": "jdmctl.controls.depth:Depth",
    "lowres": "jdmctl.controls.lowres:LowRes",
    "softedge": "jdmctl.controls.softedge:SoftEdge",
}
