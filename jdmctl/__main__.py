"""python -m jdmctl"""

from jdmctl.cli.app import main

main()
