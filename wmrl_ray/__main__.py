"""`python -m wmrl_ray`: the `wmrl` command where its script is not on the PATH, as in the entry point of a cluster's job."""

from wmrl_ray.cli import main

if __name__ == "__main__":
    main()
