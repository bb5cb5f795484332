"""`flambeau doctor`: what this machine and its packages are like, and what to do about what is not right.

Every room looks at one subject and gives findings; nothing here mends anything. torch, the sandbox and models are tried
in processes of their own.
"""
