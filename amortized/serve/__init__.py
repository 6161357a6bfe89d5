"""A trained generator as a service: text in, pictures and 3D files out, over HTTP.

`app` knows HTTP alone and `jobs` everything else: `batcher` makes previews of several objects in one forward
pass, `workers` make files in other processes, `store` holds the results by the digest of their request.
"""
