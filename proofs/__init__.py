"""Long checks with a figure each; `./run_all.sh prove` lists them."""
