# escape=`
# check=skip=all
FROM mcr.example/servercore
SHELL ["powershell", "-Command", "$ErrorActionPreference = 'Stop';"]
ENV PATHS="C:\one;C:\two" `
    NEXT=3
RUN New-Item -Path C:\ -Name x `
    -ItemType directory
COPY a\b c:\d\
CMD dir c:\
