from crisp_attention.cli.main import main

if __name__ == "__main__":
    main()
