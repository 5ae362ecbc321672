"""Speed side by side with other libraries, in one process: `./run_all.sh bench speed`."""
