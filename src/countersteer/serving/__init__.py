"""Steering as a service: an OpenAI-compatible server that applies bundles by policy, and says what they did.

    app, server    the parts and the ASGI application; `run` and `running` serve it with uvicorn
    policy         which bundles, which by default, how far rolled out; `policies` swaps them without dropping requests
    rollout        which bundle one request gets; `jobs` runs it, measures it, audits it
    keys, limits   who may ask, and for how much
    audit, metrics what happened

Serving talks to any engine through the protocol of `engines/base.py`.
"""
