# The dashboard in a container. For a graphics card: docker build --build-arg TORCH=cu126 . (and run it with --gpus all)
FROM python:3.11-slim
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN pip install torch torchvision --index-url https://download.pytorch.org/whl/${TORCH}
COPY pyproject.toml settings.ini setup.py MANIFEST.in README.md LICENSE /source/
COPY diffnb /source/diffnb
RUN pip install "/source[dashboard]"
# a user without rights, and a folder of theirs for what is made
RUN useradd --create-home --uid 1000 painter && install --directory --owner painter --group painter /outputs
USER painter
WORKDIR /outputs
VOLUME /outputs
EXPOSE 8866
ENTRYPOINT ["diffnb"]
CMD ["dashboard", "/outputs", "--host", "0.0.0.0", "--port", "8866", "--no-browser"]
