"""What kills at random moments leave behind: kill -9 of a training, an upload, a refresh, a deployment, a gateway.

    python -m benchmarks.chaos --kills 60 --seed 1

The processes are the real ones: payloads under the I/O managers with an S3 server (moto's) as the store, a crawl of a
site on this machine, llama.cpp behind the gateway with users who stream answers. Each kill hits one process of the
step at a random moment; then the step is started again, as a user or a sensor would, and it is counted what is
half-written, what was there and is gone, how many training steps are done again (up to the interval of checkpoints is
what was asked for), and which requests failed though nothing was killed while they ran. It is compared with the same
steps when nothing is killed: the first of each.
"""
