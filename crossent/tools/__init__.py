"""What is built on the library and what the library never imports: `explain`, and the commands with all they need."""
