"""The hosts: what each framework needs beside plain WSGI."""
