"""Weight files of every public form: what they are, and their tensors one by one."""
