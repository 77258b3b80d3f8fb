from gear_studio.cli import main

main()
