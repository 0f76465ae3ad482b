from python:3 as base
onbuild copy requirements.txt /usr/src/
onbuild run --mount=type=cache,target=/root/.cache pip install -r /usr/src/requirements.txt
ONBUILD COPY <<conf /etc/app.conf
a = 1
conf
MAINTAINER Somebody
